"""What a bundle's check needs to know of an ONNX file, read from its protobuf wire form.

The onnx package is a training dependency and onnxruntime would load external data before one
could look at it, so the few fields that matter are read here. Field numbers are those of
onnx/onnx.proto, which never reuses them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from siserve.bundle.wire import WireError, as_message, as_text, fields

__all__ = ["ExternalData", "GraphFacts", "TensorFacts", "read_graph_facts"]

_DTYPES = {1: "float32", 7: "int64"}


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's values lie outside of the graph's file."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class TensorFacts:
    """Type and axes of an input or output; a string names an axis of any size."""

    dtype: str
    axes: tuple[int | str, ...]


@dataclass
class GraphFacts:
    """Domains of operators, inputs and outputs by name, and external data."""

    domains: set[str] = field(default_factory=set)
    inputs: dict[str, TensorFacts] = field(default_factory=dict)
    outputs: dict[str, TensorFacts] = field(default_factory=dict)
    external: list[ExternalData] = field(default_factory=list)


def read_graph_facts(model: bytes) -> GraphFacts:
    """Read a serialised ModelProto.

    Raises:
        WireError: if it is no protobuf message or holds no graph.
    """
    facts = GraphFacts()
    graphs = 0
    for number, value in fields(memoryview(model)):
        if number == 7:  # graph
            graphs += 1
            _read_graph(as_message(value), facts, is_main=True)
        elif number == 8:  # opset_import
            for sub_number, sub_value in fields(as_message(value)):
                if sub_number == 1:
                    facts.domains.add(as_text(sub_value))
        elif number == 25:  # functions
            for sub_number, sub_value in fields(as_message(value)):
                if sub_number == 7:
                    _read_node(as_message(sub_value), facts)
    if graphs != 1:
        raise WireError(f"holds {graphs} graphs, expected 1")
    return facts


def _read_graph(graph: memoryview, facts: GraphFacts, is_main: bool = False) -> None:
    for number, value in fields(graph):
        if number == 1:  # node
            _read_node(as_message(value), facts)
        elif number == 5:  # initializer
            _read_tensor(as_message(value), facts)
        elif number == 15:  # sparse_initializer: values, indices
            for sub_number, sub_value in fields(as_message(value)):
                if sub_number in (1, 2):
                    _read_tensor(as_message(sub_value), facts)
        elif number in (11, 12) and is_main:  # input, output
            name, tensor = _read_value_info(as_message(value))
            (facts.inputs if number == 11 else facts.outputs)[name] = tensor


def _read_node(node: memoryview, facts: GraphFacts) -> None:
    for number, value in fields(node):
        if number == 7:  # domain
            facts.domains.add(as_text(value))
        elif number == 5:  # attribute
            for sub_number, sub_value in fields(as_message(value)):
                if sub_number in (5, 10):  # t, tensors
                    _read_tensor(as_message(sub_value), facts)
                elif sub_number in (6, 11):  # g, graphs
                    _read_graph(as_message(sub_value), facts)


def _read_tensor(tensor: memoryview, facts: GraphFacts) -> None:
    entries: dict[str, str] = {}
    is_external = False
    for number, value in fields(tensor):
        if number == 13:  # external_data: key, value
            pair = {n: as_text(v) for n, v in fields(as_message(value))}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:  # data_location, 1 = external
            is_external = value == 1
    if is_external or entries:
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        except ValueError:
            raise WireError("holds external data whose offset or length is no number") from None
        facts.external.append(ExternalData(entries.get("location", ""), offset, length))


def _read_value_info(info: memoryview) -> tuple[str, TensorFacts]:
    name, tensor = "", TensorFacts("unknown", ())
    for number, value in fields(info):
        if number == 1:
            name = as_text(value)
        elif number == 2:  # type
            for type_number, type_value in fields(as_message(value)):
                if type_number == 1:  # tensor_type
                    tensor = _read_tensor_type(as_message(type_value))
    return name, tensor


def _read_tensor_type(tensor_type: memoryview) -> TensorFacts:
    dtype, axes = "unknown", list[int | str]()
    for number, value in fields(tensor_type):
        if number == 1 and isinstance(value, int):  # elem_type
            dtype = _DTYPES.get(value, f"type {value}")
        elif number == 2:  # shape
            axes += [_read_axis(as_message(dim)) for n, dim in fields(as_message(value)) if n == 1]
    return TensorFacts(dtype, tuple(axes))


def _read_axis(dim: memoryview) -> int | str:
    axis: int | str = ""
    for number, value in fields(dim):
        if number == 1 and isinstance(value, int):  # dim_value
            axis = value
        elif number == 2:  # dim_param
            axis = as_text(value)
    return axis
