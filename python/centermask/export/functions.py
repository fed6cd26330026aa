"""What our operators mean in ONNX's own, as functions inside the file.

ONNX Runtime looks for an operator among those that are registered, and only if it is not there at the functions of the
file. So the same file runs our kernels where libcentermask_ort.so is loaded, and ONNX's DeformConv where it is not.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import AttributeProto, helper
from torch import Tensor, nn

from centermask.export.translations import DOMAIN, STANDARD
from centermask.nn import heads

_GEOMETRY: Mapping[str, Any] = {
    "dilations": AttributeProto.INTS,
    "group": AttributeProto.INT,
    "kernel_shape": AttributeProto.INTS,
    "offset_group": AttributeProto.INT,
    "pads": AttributeProto.INTS,
    "strides": AttributeProto.INTS,
}


def add_functions(model: onnx.ModelProto, *, relu: bool) -> None:
    """Adds a definition for each operator of ours that the graph has, but AssembleMasks, which ONNX cannot express.

    Args:
        model: Of the profile `fused`.
        relu: Whether its DeformConv nodes have a ReLU inside (all of them, or none).
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    nodes = {node.op_type: node for node in model.graph.node if node.domain == DOMAIN}
    if "DeformConv" in nodes and opset >= 19:  # ONNX has it from there on
        model.functions.append(_deform_conv(opset, relu))
    if "DecodeCenters" in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in nodes["DecodeCenters"].attribute}
        decode = _Decode(attributes["top_k"], attributes["score_threshold"])
        names = (["heatmap"], ["scores", "labels", "index", "count"])
        model.functions.append(_traced("DecodeCenters", decode, (torch.zeros(2, 3, 8, 8),), *names, opset, attributes))
    if "GatherPatches" in nodes:
        example = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, dtype=torch.int64))
        names = (["features", "index"], ["patches"])
        model.functions.append(_traced("GatherPatches", _Gather(), example, *names, opset, {}))


def _deform_conv(opset: int, relu: bool) -> onnx.FunctionProto:
    inputs = ["X", "W", "offset", "B", "mask"]
    output = "sum" if relu else "Y"
    convolution = helper.make_node("DeformConv", inputs, [output])
    for name, kind in _GEOMETRY.items():
        convolution.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
    nodes = [convolution, helper.make_node("Relu", [output], ["Y"])] if relu else [convolution]
    attributes = [*_GEOMETRY, "activation"]
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, "DeformConv", inputs, ["Y"], nodes, imports, attributes)


class _Decode(nn.Module):
    def __init__(self, top_k: int, score_threshold: float) -> None:
        super().__init__()
        self._top_k, self._score_threshold = top_k, score_threshold

    def forward(self, heatmap: Tensor) -> heads.Peaks:
        return heads.decode_centers(heatmap, self._top_k, self._score_threshold)


class _Gather(nn.Module):
    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        return heads.gather_patches(features, index)


def _traced(
    name: str,
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    opset: int,
    attributes: Mapping[str, Any],
) -> onnx.FunctionProto:
    """A function from what torch.onnx makes of a module; all sizes are dynamic. Attributes are fixed inside."""
    dim = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(range(tensor.ndim), dim) for tensor in example)
    with quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            custom_translation_table=STANDARD,
            verbose=False,
        )
    assert program is not None
    graph: onnx.GraphProto = program.model_proto.graph
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, name, inputs, outputs, [*constants, *graph.node], imports, list(attributes))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of its own internals; none of that helps who calls it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
