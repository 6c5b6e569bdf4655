"""A small typed builder over onnx.helper.

The graphs are written by hand rather than traced by torch.onnx: they need GRUs over ragged rows
(sequence_lens), a Loop over decoding steps whose weights stay outside of its body (so that
onnxruntime packs them once), sampling inside the graph with the noise as an input, and weights that
four files share; and they must not change when torch does. Only numpy and onnx are needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NewType, TypeVar

import numpy as np
import onnx
from onnx import helper
from siserve.bundle.tensors import WEIGHTS_FILE, Graph, Tensor

from siserve_training.export.weights import FloatArray, Place, WeightStore

__all__ = ["ABSENT", "DYNAMIC_AXES", "Branch", "GraphBuilder", "Value", "place_weights"]

Value = NewType("Value", str)
Kind = Literal["float32", "float64", "int64", "int32", "int8", "bool"]
Precision = Literal["float32", "int8"]
Branch = Callable[["GraphBuilder"], Value]
Made = TypeVar("Made")

#: An optional input or output of an operator that is left out.
ABSENT = Value("")
#: Axes whose size is known only when a graph runs; all others are sizes of the model.
DYNAMIC_AXES = ("B", "U", "N", "T", "R", "K", "A1")

_OPSET = 18
_IR_VERSION = 8
_CONTRIB = "com.microsoft"
_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
    "int32": onnx.TensorProto.INT32,
    "int8": onnx.TensorProto.INT8,
    "bool": onnx.TensorProto.BOOL,
}


class GraphBuilder:
    """Collects nodes of one graph, or of a body or branch inside one.

    Args:
        weights: the store that all graphs of a bundle share.
        parent: the graph around this one; weights and constants always go to the outermost.
        precision: of the products that have a choice; that of the parent, if there is one.
    """

    def __init__(
        self,
        weights: WeightStore,
        parent: GraphBuilder | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.weights = weights
        self.precision: Precision = parent.precision if parent else precision
        self._root: GraphBuilder = parent._root if parent else self
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._known: dict[tuple[object, ...], Any] = {}
        self._count = 0

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """Add an operator with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, num_outputs: int, *inputs: Value, **attributes: Any) -> list[Value]:
        """Add an operator and return its outputs."""
        outputs = [self._fresh(kind) for _ in range(num_outputs)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def weight(self, name: str, array: FloatArray) -> Value:
        """Use a weight, in float32 whatever it is stored in."""
        return self._root._once(
            ("weight", name), lambda root: root._cast(root._stored(name, array))
        )

    def rows_of(self, name: str, table: FloatArray, ids: Value) -> Value:
        """Gather rows of a weight; only those rows become float32."""
        return self._cast(self.op("Gather", self._root._stored(name, table), ids))

    def integers(self, *values: int) -> Value:
        """Return a vector of integers."""
        return self._constant(np.array(values, np.int64))

    def integer(self, value: int) -> Value:
        """Return a single integer."""
        return self._constant(np.array(value, np.int64))

    def real(self, value: float) -> Value:
        """Return a single float32."""
        return self._constant(np.array(value, np.float32))

    def byte(self, value: int) -> Value:
        """Return a single uint8."""
        return self._constant(np.array(value, np.uint8))

    def once(self, key: str, make: Callable[[GraphBuilder], Made]) -> Made:
        """Emit something in the outermost graph, the first time that it is asked for."""
        made: Made = self._root._once((key,), make)
        return made

    def cast(self, value: Value, to: Kind) -> Value:
        """Convert a tensor to another type."""
        return self.op("Cast", value, to=_TYPES[to])

    def reshape(self, value: Value, *shape: int) -> Value:
        """Reshape; 0 keeps an axis, -1 is what is left."""
        return self.op("Reshape", value, self.integers(*shape))

    def reduce(self, kind: str, value: Value, axis: int, keep: bool = False) -> Value:
        """Reduce one axis, by ReduceSum, ReduceMax and so on."""
        return self.op(kind, value, self.integers(axis), keepdims=int(keep))

    def unsqueeze(self, value: Value, axis: int) -> Value:
        """Insert an axis of size 1."""
        return self.op("Unsqueeze", value, self.integers(axis))

    def any(self, flags: Value) -> Value:
        """Say whether any of a vector of flags is set."""
        return self.cast(self.reduce("ReduceMax", self.cast(flags, "int64"), 0), "bool")

    def when(self, condition: Value, then: Branch, otherwise: Branch, kind: Kind) -> Value:
        """Compute one of two tensors; only the chosen branch runs."""
        return self.op(
            "If",
            condition,
            then_branch=self._branch(then, kind),
            else_branch=self._branch(otherwise, kind),
        )

    def loop(
        self,
        times: Value,
        carried: Sequence[tuple[Tensor, Value]],
        scanned: Sequence[Tensor],
        step: Callable[..., Sequence[Value]],
        sizes: Mapping[str, int],
    ) -> list[Value]:
        """Run `step` a number of times.

        Args:
            times: number of steps, a single integer.
            carried: what goes from step to step, and its first value.
            scanned: what each step gives, stacked along a new first axis.
            step: called with (body, index, *carried), returns the new carried and the scanned.
            sizes: sizes of the model by axis name.

        Returns:
            The last carried values and the stacked ones.
        """
        body = GraphBuilder(self.weights, self)
        index, going = self._fresh("index"), self._fresh("going")
        names = [self._fresh(tensor.name) for tensor, _ in carried]
        results = [body.op("Identity", v) for v in step(body, index, *names)]
        results.insert(0, body.op("Identity", going))
        inputs = [
            helper.make_tensor_value_info(index, _TYPES["int64"], []),
            helper.make_tensor_value_info(going, _TYPES["bool"], []),
            *(_describe(t, n, sizes) for (t, _), n in zip(carried, names, strict=True)),
        ]
        described = [tensor for tensor, _ in carried] + list(scanned)
        outputs = [
            helper.make_tensor_value_info(results[0], _TYPES["bool"], []),
            *(_describe(t, n, sizes) for t, n in zip(described, results[1:], strict=True)),
        ]
        graph = helper.make_graph(body._nodes, self._fresh("body"), inputs, outputs)
        first = [value for _, value in carried]
        return self.ops("Loop", len(described), times, ABSENT, *first, body=graph)

    def build(
        self, graph: Graph, outputs: Mapping[str, Value], sizes: Mapping[str, int]
    ) -> onnx.ModelProto:
        """Close the graph: name its inputs and outputs, and say what it is.

        Args:
            graph: the tensors that the bundle's contract asks for.
            outputs: the value of each of its outputs.
            sizes: sizes of the model by axis name (C, D, E, F, H, P), those that it has.
        """
        for tensor in graph.outputs:
            node = helper.make_node("Identity", [outputs[tensor.name]], [tensor.name])
            self._nodes.append(node)
        proto = helper.make_graph(
            self._nodes,
            graph.file.removesuffix(".onnx"),
            [_describe(tensor, tensor.name, sizes) for tensor in graph.inputs],
            [_describe(tensor, tensor.name, sizes) for tensor in graph.outputs],
            initializer=list(self._initializers.values()),
        )
        model = helper.make_model(
            proto,
            opset_imports=[helper.make_opsetid(*domain) for domain in self._domains()],
            ir_version=_IR_VERSION,
            producer_name="siserve",
        )
        helper.set_model_props(model, _properties(graph, sizes))
        return model

    def _domains(self) -> list[tuple[str, int]]:
        """Name the sets of operators; onnxruntime's own one only where its operators are used."""
        contrib = [(_CONTRIB, 1)] if self.precision == "int8" else []
        return [("", _OPSET), *contrib]

    def _branch(self, make: Branch, kind: Kind) -> onnx.GraphProto:
        body = GraphBuilder(self.weights, self)
        result = body.op("Identity", make(body))
        output = helper.make_tensor_value_info(result, _TYPES[kind], None)
        return helper.make_graph(body._nodes, self._fresh("branch"), [], [output])

    def _once(self, key: tuple[object, ...], make: Callable[[GraphBuilder], Made]) -> Made:
        if key not in self._known:
            self._known[key] = make(self)
        known: Made = self._known[key]
        return known

    def _constant(self, array: np.ndarray[Any, Any]) -> Value:
        def make(root: GraphBuilder) -> Value:
            return root.op("Constant", value=onnx.numpy_helper.from_array(array))

        return self._root._once((array.dtype.str, array.shape, *array.flat), make)

    def _stored(self, name: str, array: FloatArray) -> Value:
        if name not in self._initializers:
            self.weights.add(name, array)
            tensor = onnx.TensorProto(name=name, dims=array.shape)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(self.weights.dtype))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            self._initializers[name] = tensor
        return Value(name)

    def _cast(self, value: Value) -> Value:
        return value if self.weights.dtype == "float32" else self.cast(value, "float32")

    def _fresh(self, stem: str) -> Value:
        self._root._count += 1
        return Value(f"{stem}_{self._root._count}")


def place_weights(model: onnx.ModelProto, places: Mapping[str, Place]) -> None:
    """Point each initializer of a graph to its bytes in weights.safetensors."""
    for tensor in model.graph.initializer:
        place = places[tensor.name]
        del tensor.external_data[:]
        entries = {"location": WEIGHTS_FILE, "offset": place.offset, "length": place.length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))


def _describe(tensor: Tensor, name: str, sizes: Mapping[str, int]) -> onnx.ValueInfoProto:
    shape = [_axis(axis, sizes) for axis in tensor.axes]
    return helper.make_tensor_value_info(name, _TYPES[tensor.dtype], shape)


def _axis(axis: str | int, sizes: Mapping[str, int]) -> str | int:
    return axis if isinstance(axis, int) or axis in DYNAMIC_AXES else sizes[axis]


def _properties(graph: Graph, sizes: Mapping[str, int]) -> dict[str, str]:
    """Tell the axes of every tensor, as people who open the file in a viewer want to know."""
    properties = {
        f"axes.{tensor.name}": ",".join(str(axis) for axis in tensor.axes)
        for tensor in (*graph.inputs, *graph.outputs)
    }
    used = {axis for tensor in (*graph.inputs, *graph.outputs) for axis in tensor.axes}
    properties["axes.dynamic"] = ",".join(axis for axis in DYNAMIC_AXES if axis in used)
    properties["sizes"] = ",".join(
        f"{axis}={sizes[axis]}" for axis in sorted(sizes) if axis in used
    )
    return properties
