"""What a bundle's check needs to know of an ONNX file, read from its protobuf wire form.

The onnx package is a training dependency and onnxruntime would load external data before one
could look at it, so the few fields that matter are read here. Field numbers are those of
onnx/onnx.proto, which never reuses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["ExternalData", "GraphFacts", "WireError", "read_graph_facts"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES = {1: "float32", 7: "int64"}


class WireError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's values lie outside of the graph's file."""

    location: str
    offset: int
    length: int


@dataclass
class GraphFacts:
    """Domains of operators, names and types of inputs and outputs, and external data."""

    domains: set[str] = field(default_factory=set)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    external: list[ExternalData] = field(default_factory=list)


def read_graph_facts(model: bytes) -> GraphFacts:
    """Read a serialised ModelProto.

    Raises:
        WireError: if it is no protobuf message or holds no graph.
    """
    facts = GraphFacts()
    graphs = 0
    for number, value in _fields(memoryview(model)):
        if number == 7:  # graph
            graphs += 1
            _read_graph(_message(value), facts, is_main=True)
        elif number == 8:  # opset_import
            for sub_number, sub_value in _fields(_message(value)):
                if sub_number == 1:
                    facts.domains.add(_text(sub_value))
        elif number == 25:  # functions
            for sub_number, sub_value in _fields(_message(value)):
                if sub_number == 7:
                    _read_node(_message(sub_value), facts)
    if graphs != 1:
        raise WireError(f"holds {graphs} graphs, expected 1")
    return facts


def _read_graph(graph: memoryview, facts: GraphFacts, is_main: bool = False) -> None:
    for number, value in _fields(graph):
        if number == 1:  # node
            _read_node(_message(value), facts)
        elif number == 5:  # initializer
            _read_tensor(_message(value), facts)
        elif number == 15:  # sparse_initializer: values, indices
            for sub_number, sub_value in _fields(_message(value)):
                if sub_number in (1, 2):
                    _read_tensor(_message(sub_value), facts)
        elif number in (11, 12) and is_main:  # input, output
            name, dtype = _read_value_info(_message(value))
            (facts.inputs if number == 11 else facts.outputs)[name] = dtype


def _read_node(node: memoryview, facts: GraphFacts) -> None:
    for number, value in _fields(node):
        if number == 7:  # domain
            facts.domains.add(_text(value))
        elif number == 5:  # attribute
            for sub_number, sub_value in _fields(_message(value)):
                if sub_number in (5, 10):  # t, tensors
                    _read_tensor(_message(sub_value), facts)
                elif sub_number in (6, 11):  # g, graphs
                    _read_graph(_message(sub_value), facts)


def _read_tensor(tensor: memoryview, facts: GraphFacts) -> None:
    entries: dict[str, str] = {}
    is_external = False
    for number, value in _fields(tensor):
        if number == 13:  # external_data: key, value
            pair = {n: _text(v) for n, v in _fields(_message(value))}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:  # data_location, 1 = external
            is_external = value == 1
    if is_external or entries:
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        except ValueError:
            raise WireError("holds external data whose offset or length is no number") from None
        facts.external.append(ExternalData(entries.get("location", ""), offset, length))


def _read_value_info(info: memoryview) -> tuple[str, str]:
    name, dtype = "", "unknown"
    for number, value in _fields(info):
        if number == 1:
            name = _text(value)
        elif number == 2:  # type
            for type_number, type_value in _fields(_message(value)):
                if type_number == 1:  # tensor_type
                    for n, v in _fields(_message(type_value)):
                        if n == 1 and isinstance(v, int):
                            dtype = _DTYPES.get(v, f"type {v}")
    return name, dtype


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(message, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise WireError(f"holds wire type {wire}")
        if position + size > end:
            raise WireError("ends within a field")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError("ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError("holds a number of more than 10 bytes")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise WireError("holds a number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    try:
        return bytes(_message(value)).decode()
    except UnicodeDecodeError:
        raise WireError("holds text that is not UTF-8") from None
