"""An exported graph in float16, strongly typed: every tensor says what it is, and no engine has to guess.

Weights stay as they are stored. Tensors in and out are float16 too, but for those that only lead to what is
kept in float32: normalisations, whose sums of squares go beyond float16's range, and whatever ends in a sine
(the embedding of a timestep) or in a whole number (a size).
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from toonstream.errors import ModelError

__all__ = ["to_half"]

_NORMALISATIONS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "ReduceMean"}
)
_WHOLE = frozenset({TensorProto.INT32, TensorProto.INT64})
_SINES = frozenset({"Cos", "Sin"})
_RESIZE = "Resize"
_RESIZE_EXACT = (1, 2)  # its inputs roi and scales are float32 by definition
_LARGEST = 65504.0  # in float16


def to_half(model: ModelProto) -> None:
    """Make a float32 graph a float16 one, in place.

    Args:
        model: its weights are external float16 initializers, each followed by a Cast to float32.

    Raises:
        ModelError: the graph has branches, or tensors of unknown type.
    """
    _Halving(model).run()


class _Halving:
    """One graph on its way.

    Attributes:
        floats: tensors that are float32 in the graph as it was.
        exact: nodes that stay in float32, by their place.
        forms: of each float tensor, the names under which it is there, by element type.
        constants: those that are not there yet, for they are made in the type that is asked for.
        nodes: of the new graph, so far.
    """

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.floats = _float_tensors(model)
        self.exact = self._exact_nodes()
        self.forms: dict[str, dict[int, str]] = {}
        self.constants: dict[str, NDArray[Any]] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        before = list(self.graph.node)
        self._take_initializers()
        self._take_inputs(before)
        for place, node in enumerate(before):
            self._take_node(node, exact=place in self.exact)
        for output in self.graph.output:
            if output.name in self.floats:
                output.type.tensor_type.elem_type = TensorProto.FLOAT16
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)

    def _exact_nodes(self) -> set[int]:
        """Find what stays in float32: normalisations, sines, and what leads to a sine or a whole number."""
        exact: set[int] = set()
        wanted: set[str] = set()  # tensors that have to be exact
        for place in range(len(self.graph.node) - 1, -1, -1):
            node = self.graph.node[place]
            leads = any(name in wanted for name in node.output)
            if leads or node.op_type in _SINES or (node.op_type == "Cast" and _cast_to(node) in _WHOLE):
                wanted.update(name for name in node.input if name in self.floats)
            elif node.op_type == _RESIZE:
                wanted.update(name for name in node.input[1:] if name in self.floats)
            if leads or node.op_type in _SINES or node.op_type in _NORMALISATIONS:
                exact.add(place)
        return exact

    def _take_initializers(self) -> None:
        kept = []
        for tensor in self.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL and tensor.data_type == TensorProto.FLOAT:
                self.constants[tensor.name] = numpy_helper.to_array(tensor)
            else:
                kept.append(tensor)
                if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
                    self.forms[tensor.name] = {tensor.data_type: tensor.name}
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _take_inputs(self, nodes: list[NodeProto]) -> None:
        for tensor in self.graph.input:
            if tensor.name not in self.floats:
                continue
            readers = [place for place, node in enumerate(nodes) if tensor.name in node.input]
            kind = TensorProto.FLOAT if self.exact.issuperset(readers) else TensorProto.FLOAT16
            tensor.type.tensor_type.elem_type = kind
            self.forms[tensor.name] = {kind: tensor.name}

    def _take_node(self, node: NodeProto, *, exact: bool) -> None:
        if node.op_type == "Constant" and node.output[0] in self.floats:
            self.constants[node.output[0]] = numpy_helper.to_array(_attribute(node, "value").t)
            return
        if node.op_type == "Cast" and node.output[0] in self.floats and node.input[0] in self.forms:
            self.forms[node.output[0]] = self.forms[node.input[0]]  # a weight as stored: cast if need be
            return
        kind = TensorProto.FLOAT if exact else TensorProto.FLOAT16
        for index, name in enumerate(node.input):
            if name in self.floats:
                always = node.op_type == _RESIZE and index in _RESIZE_EXACT
                node.input[index] = self._form(name, TensorProto.FLOAT if always else kind)
        self._set_type(node, kind)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            self.forms[name] = {kind: name}
            if exact and any(name == output.name for output in self.graph.output):
                self.forms[name] = {kind: f"{name}/float32"}
                node.output[index] = f"{name}/float32"
                self._cast(name, TensorProto.FLOAT16, name)

    def _set_type(self, node: NodeProto, kind: int) -> None:
        """Say in the node's own attributes what it makes."""
        if node.output[0] not in self.floats:
            return
        if node.op_type == "Cast":
            _attribute(node, "to").i = kind
        elif node.op_type == "ConstantOfShape":
            value = _attribute(node, "value")
            value.t.CopyFrom(_tensor(numpy_helper.to_array(value.t), kind))

    def _form(self, name: str, kind: int) -> str:
        """Give the name of a tensor in an element type, making it where it is not there yet."""
        forms = self.forms.setdefault(name, {})
        if kind not in forms:
            target = f"{name}/{'float16' if kind == TensorProto.FLOAT16 else 'float32'}"
            if name in self.constants:
                value = _tensor(self.constants[name], kind)
                self.nodes.append(helper.make_node("Constant", [], [target], name=target, value=value))
                forms[kind] = target
            else:
                self._cast(name, kind, target)
        return forms[kind]

    def _cast(self, name: str, kind: int, target: str) -> None:
        (source,) = self.forms[name].values()
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast/{target}", to=kind))
        self.forms[name][kind] = target


def _float_tensors(model: ModelProto) -> set[str]:
    """Find the tensors of a graph that are float32."""
    graph = model.graph
    if any(attribute.type == AttributeProto.GRAPH for node in graph.node for attribute in node.attribute):
        raise ModelError("this network branches on its inputs and cannot be made float16; use float32")
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    unknown = [name for node in graph.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise ModelError(f"the type of {unknown[0]} is not known and cannot be made float16; use float32")
    return {name for name, kind in types.items() if kind == TensorProto.FLOAT}


def _attribute(node: NodeProto, name: str) -> AttributeProto:
    attributes: list[AttributeProto] = [entry for entry in node.attribute if entry.name == name]
    return attributes[0]


def _cast_to(node: NodeProto) -> int:
    return int(_attribute(node, "to").i)


def _tensor(value: NDArray[Any], kind: int) -> TensorProto:
    """Make a constant; what is beyond float16 becomes its largest number."""
    if kind == TensorProto.FLOAT16:
        value = value.clip(-_LARGEST, _LARGEST).astype(np.float16)
    return numpy_helper.from_array(value)
