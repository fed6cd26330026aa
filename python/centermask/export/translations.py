"""What becomes of our operators of PyTorch, and of a few of its own, when torch.onnx meets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.defs import OpSchema
from onnxscript import opset18, values
from onnxscript import opset19 as op
from torch import Tensor

from centermask.nn import deform_conv  # noqa: F401  (registers the operator that is translated below)
from centermask.nn.heads import Peaks

DOMAIN = "centermask"
"""Of our operators in ONNX; its only version is 1."""

# ---- our operators of one node, as PyTorch sees them while it traces: shapes alone ----

_library: Any = torch.library.Library("centermask_export", "DEF")  # type: ignore[no-untyped-call]
_library.define("decode_centers(Tensor heatmap, int top_k, float score_threshold) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define("gather_patches(Tensor features, Tensor index) -> Tensor")
_library.define(
    "assemble_masks(Tensor mask_features, Tensor mask_params, Tensor boxes, Tensor labels, Tensor count, "
    "Tensor image_to_input, Tensor image_size, str head, int stride, float box_margin) -> (Tensor, Tensor)"
)


@torch.library.register_fake("centermask_export::decode_centers")  # type: ignore[untyped-decorator]
def _(heatmap: Tensor, top_k: int, score_threshold: float) -> tuple[Tensor, ...]:
    batch = heatmap.shape[0]
    rows = heatmap.new_empty((batch, top_k), dtype=torch.int64)
    return heatmap.new_empty((batch, top_k), dtype=torch.float32), rows, rows.clone(), rows.new_empty((batch,))


@torch.library.register_fake("centermask_export::gather_patches")  # type: ignore[untyped-decorator]
def _(features: Tensor, index: Tensor) -> Tensor:
    return features.new_empty((index.shape[0], index.shape[1], features.shape[1] * 9))


@torch.library.register_fake("centermask_export::assemble_masks")  # type: ignore[untyped-decorator]
def _(mask_features: Tensor, mask_params: Tensor, boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    runs = torch.library.get_ctx().new_dynamic_size()
    offsets = boxes.new_empty((boxes.shape[0] * boxes.shape[1] + 1,), dtype=torch.int64)
    return boxes.new_empty((runs,), dtype=torch.uint32), offsets


def decode_centers(heatmap: Tensor, top_k: int, score_threshold: float) -> Peaks:
    """`heads.decode_centers` as one operator; for tracing alone."""
    return Peaks(*torch.ops.centermask_export.decode_centers(heatmap, top_k, score_threshold))


def gather_patches(features: Tensor, index: Tensor) -> Tensor:
    """`heads.gather_patches` as one operator; for tracing alone."""
    result: Tensor = torch.ops.centermask_export.gather_patches(features, index)
    return result


# ---- the same in ONNX ----


def _operator(name: str, inputs: str, outputs: str, attributes: Mapping[str, OpSchema.AttrType]) -> Any:
    """An operator of our domain; inputs and outputs are words of `name:type`."""
    formal = [
        [OpSchema.FormalParameter(word.partition(":")[0], f"tensor({word.partition(':')[2]})") for word in text.split()]
        for text in (inputs, outputs)
    ]
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=formal[0],
        outputs=formal[1],
        attributes=[OpSchema.Attribute(key, kind) for key, kind in attributes.items()],
    )
    return values.Op(values.Opset(DOMAIN, 1), name, schema)


_DECODE_CENTERS = _operator(
    "DecodeCenters",
    "heatmap:float",
    "scores:float labels:int64 index:int64 count:int64",
    {"top_k": OpSchema.AttrType.INT, "score_threshold": OpSchema.AttrType.FLOAT},
)
_GATHER_PATCHES = _operator("GatherPatches", "features:float index:int64", "patches:float", {})
_ASSEMBLE_MASKS = _operator(
    "AssembleMasks",
    "mask_features:float mask_params:float boxes:float labels:int64 count:int64 image_to_input:double image_size:int64",
    "rle_counts:uint32 rle_offsets:int64",
    {"head": OpSchema.AttrType.STRING, "stride": OpSchema.AttrType.INT, "box_margin": OpSchema.AttrType.FLOAT},
)


def _decode_centers(heatmap: Any, top_k: int, score_threshold: float) -> Any:
    return _DECODE_CENTERS(heatmap, top_k=top_k, score_threshold=score_threshold)


def _gather_patches(features: Any, index: Any) -> Any:
    return _GATHER_PATCHES(features, index)


def _assemble_masks(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    labels: Any,
    count: Any,
    image_to_input: Any,
    image_size: Any,
    head: str,
    stride: int,
    box_margin: float,
) -> Any:
    inputs = (mask_features, mask_params, boxes, labels, count, image_to_input, image_size)
    return _ASSEMBLE_MASKS(*inputs, head=head, stride=stride, box_margin=box_margin)


def _deform_conv2d(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None = None,
) -> Any:
    """Our operator as ai.onnx::DeformConv, by TensorRT's rules as well: symmetric pads, mask and bias given."""
    channels, _, height, width = (int(side) for side in weight.shape)
    taps = height * width
    offset_groups = int(offset.shape[1]) // (2 * taps)
    bias, mask = _bias_and_mask(channels, offset, mask, bias, offset_groups * taps)
    output = op.DeformConv(
        x,
        weight,
        offset,
        bias,
        mask,
        dilations=list(dilation),
        group=groups,
        kernel_shape=[height, width],
        offset_group=offset_groups,
        pads=[*padding, *padding],
        strides=list(stride),
    )
    return op.Relu(output) if activation == "relu" else output


def _integers(*values: int) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.array(values, np.int64)))


def _integer_division(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    """Cells and classes from flat indices. The exporter's own way is through float32, which is wrong beyond 2^24.

    ONNX's division of integers cuts off, which is `floor` for what is never negative.
    """
    if rounding_mode not in ("floor", "trunc"):
        raise ValueError(f"export: only division of integers is translated here, got rounding_mode={rounding_mode!r}")
    return op.Div(a, _integers(b) if isinstance(b, int) else b)


def _bias_and_mask(channels: int, offset: Any, mask: Any, bias: Any, mask_channels: int) -> tuple[Any, Any]:
    """Bias and mask, those that do nothing where there are none."""
    if bias is None:
        bias = op.Constant(value=numpy_helper.from_array(np.zeros(channels, np.float32)))
    if mask is None:
        first, last, axis = (_integers(value) for value in (0, mask_channels, 1))
        shape = op.Shape(op.Slice(offset, first, last, axis))
        mask = op.ConstantOfShape(shape, value=numpy_helper.from_array(np.ones(1, np.float32)))
    return bias, mask


def _decomposed_deform_conv2d(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None = None,
) -> Any:
    """Our operator by GridSample, once for all taps, and a 1x1 convolution: for runtimes that lack DeformConv.

    The samples, [N, C * taps, Ho, Wo], are held in memory. Bilinear, zero outside, as in the operator itself.
    """
    op = opset18
    channels, group_channels, kernel_h, kernel_w = (int(side) for side in weight.shape)
    in_channels, taps = group_channels * groups, kernel_h * kernel_w
    offset_groups = int(offset.shape[1]) // (2 * taps)

    def numbers(*values: float) -> Any:
        return op.Constant(value=numpy_helper.from_array(np.array(values, np.float32)))

    def size(value: Any, axis: int) -> Any:
        return op.Shape(value, start=axis, end=axis + 1)

    batch = size(x, 0)
    height, width, out_h, out_w = size(x, 2), size(x, 3), size(offset, 2), size(offset, 3)
    # [N * G, taps, 2, Ho, Wo]
    shape = op.Concat(_integers(-1), _integers(taps, 2), out_h, out_w, axis=0)
    offsets = op.Reshape(offset, shape)

    def places(axis: int, count: Any, kernel: int) -> tuple[Any, Any]:
        """Where each tap (of this axis) and each output cell lie without an offset, in input pixels."""
        start, step = numbers(0.0), numbers(1.0)
        real: Any = op.Cast(count, to=onnx.TensorProto.FLOAT)
        scalar = op.Squeeze(real)
        cells = op.Range(op.Squeeze(start), scalar, op.Squeeze(step))
        cells = op.Sub(op.Mul(cells, numbers(float(stride[axis]))), numbers(float(padding[axis])))
        return numbers(*(float(dilation[axis] * i) for i in range(kernel))), cells

    taps_y, cells_y = places(0, out_h, kernel_h)
    taps_x, cells_x = places(1, out_w, kernel_w)
    tap_rows = op.Reshape(op.Expand(op.Reshape(taps_y, _integers(-1, 1)), _integers(kernel_h, kernel_w)), _integers(-1))
    tap_columns = op.Reshape(
        op.Expand(op.Reshape(taps_x, _integers(1, -1)), _integers(kernel_h, kernel_w)), _integers(-1)
    )

    def coordinates(which: int, taps_at: Any, cells: Any, cells_shape: tuple[int, ...], extent: Any) -> Any:
        """[N * G, taps, Ho, Wo] in GridSample's measure: -1 and 1 are the outer edges of the image."""
        own = op.Gather(offsets, op.Squeeze(_integers(which)), axis=2)
        base = op.Add(op.Reshape(taps_at, _integers(1, -1, 1, 1)), op.Reshape(cells, _integers(*cells_shape)))
        pixels = op.Add(own, base)
        scale = op.Div(numbers(2.0), op.Cast(extent, to=onnx.TensorProto.FLOAT))
        return op.Sub(op.Mul(op.Add(pixels, numbers(0.5)), scale), numbers(1.0))

    grid_y = coordinates(0, tap_rows, cells_y, (1, 1, -1, 1), height)
    grid_x = coordinates(1, tap_columns, cells_x, (1, 1, 1, -1), width)
    grid = op.Concat(op.Unsqueeze(grid_x, _integers(-1)), op.Unsqueeze(grid_y, _integers(-1)), axis=4)
    rows = op.Mul(out_h, _integers(taps))
    grid = op.Reshape(grid, op.Concat(_integers(-1), rows, out_w, _integers(2), axis=0))
    image = op.Reshape(x, op.Concat(_integers(-1, in_channels // offset_groups), height, width, axis=0))
    samples = op.GridSample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=0)
    spread = op.Concat(_integers(-1, in_channels // offset_groups, taps), out_h, out_w, axis=0)
    samples = op.Reshape(samples, spread)  # [N * G, C / G, taps, Ho, Wo]
    if mask is not None:
        shape = op.Concat(_integers(-1, 1, taps), out_h, out_w, axis=0)
        samples = op.Mul(samples, op.Reshape(mask, shape))
    samples = op.Reshape(samples, op.Concat(batch, _integers(in_channels * taps), out_h, out_w, axis=0))
    flat = op.Reshape(weight, _integers(channels, group_channels * taps, 1, 1))
    if bias is None:
        bias = numbers(*([0.0] * channels))
    output = op.Conv(samples, flat, bias, group=groups, kernel_shape=[1, 1])
    return op.Relu(output) if activation == "relu" else output


_DIVISIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.div.Tensor_mode: _integer_division,
    torch.ops.aten.div.Scalar_mode: _integer_division,
}

STANDARD: dict[Any, Callable[..., Any]] = {torch.ops.centermask.deform_conv2d.default: _deform_conv2d, **_DIVISIONS}
"""Operators of ONNX alone."""

FUSED: dict[Any, Callable[..., Any]] = {
    **STANDARD,
    torch.ops.centermask_export.decode_centers.default: _decode_centers,
    torch.ops.centermask_export.gather_patches.default: _gather_patches,
    torch.ops.centermask_export.assemble_masks.default: _assemble_masks,
}
"""Operators of our domain; DeformConv is given to it by `graph.fuse_relu`."""

DECOMPOSED: dict[Any, Callable[..., Any]] = {
    torch.ops.centermask.deform_conv2d.default: _decomposed_deform_conv2d,
    **_DIVISIONS,
}
"""Operators that every runtime has."""
