"""From a checkpoint to an `.onnx` file of the contract: decode and sparse heads in the graph, masks by the core."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnxscript import opset20 as op
from torch import Tensor, nn

from centermask.export.verify import Report, finds_instances, verify
from centermask.files import make_room, temporary_path
from centermask.metadata import ModelInfo
from centermask.nn import deform_conv  # noqa: F401  (registers the operator that is translated below)
from centermask.nn.model import CenterMask
from centermask.training.checkpoint import load_checkpoint

Profile = Literal["standard"]
Precision = Literal["fp32", "fp16"]

OPSET = 20
"""DeformConv came with 19; 20 is what every runtime that runs DeformConv also has."""

GRAPH_SCORE_THRESHOLD = 0.05
"""The graph keeps every peak above it; the Predictor filters further."""

_OUTPUT_SHAPES: Mapping[str, tuple[str | int, ...]] = {
    "boxes": ("N", "K", 4),
    "scores": ("N", "K"),
    "labels": ("N", "K"),
    "count": ("N",),
    "mask_params": ("N", "K", "P"),
    "mask_features": ("N", "M", "H/4", "W/4"),
}


def export(
    model: str | os.PathLike[str] | CenterMask,
    path: str | os.PathLike[str],
    *,
    profile: Profile = "standard",
    precision: Precision = "fp32",
    graph_score_threshold: float = GRAPH_SCORE_THRESHOLD,
    score_threshold: float | None = None,
    max_overlap: float | None = None,
    class_agnostic: bool = False,
    training_data: str | None = None,
    ap: Mapping[str, float] | None = None,
) -> Report:
    """Writes an ONNX file, verified against PyTorch; nothing is left at `path` if that fails.

    Args:
        model: A checkpoint's path, or a model.
        path: The file to write.
        profile: `standard`: operators of ONNX alone, DeformConv among them.
        precision: Of the stored weights. `fp16` halves the file; the runtime widens them when it loads the file, and
            all arithmetic is float32.
        graph_score_threshold: Peaks below it are cut off in the graph, 0..1.
        score_threshold: Threshold for showing that the file recommends, 0..1; 0.3 if None.
        max_overlap: Box IoU above which the Predictor takes two instances of a class for one, 0..1; 0.65 if None.
        class_agnostic: That holds between classes too, so that an object has one label only.
        training_data: What the weights were trained on, in words; None takes what the checkpoint says.
        ap: Measured average precisions by name, for the metadata.

    Returns:
        The error of each output.

    Raises:
        FileNotFoundError: There is no such checkpoint. (Other OSErrors when `path` cannot be written.)
        ValueError: It is no checkpoint of ours, or a setting is out of range.
        VerifyError: The file gives other results than PyTorch.
    """
    if profile != "standard":
        raise ValueError(f"export: profile must be standard, got {profile!r}")
    if precision not in ("fp32", "fp16"):
        raise ValueError(f"export: precision must be fp32 or fp16, got {precision!r}")
    for name, value in (
        ("graph_score_threshold", graph_score_threshold),
        ("score_threshold", score_threshold),
        ("max_overlap", max_overlap),
    ):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"export: {name} must be in 0..1, got {value}")
    make_room(path)
    if not isinstance(model, CenterMask):
        checkpoint = load_checkpoint(model)
        model = checkpoint.build()
        if training_data is None:
            training_data = ", ".join(str(name) for name in checkpoint.info.get("data", ()))
    settings: dict[str, Any] = {
        "training_data": training_data or "",
        "ap": tuple((ap or {}).items()),
        "class_agnostic": class_agnostic,
    }
    if score_threshold is not None:
        settings["score_threshold"] = score_threshold
    if max_overlap is not None:
        settings["max_overlap"] = max_overlap
    info = ModelInfo.from_config(model.config, profile=profile, **settings)
    was_training = model.training
    model.eval()
    try:
        temporary = temporary_path(path)
        try:
            # A model that finds nothing in the pictures of the verification would leave nothing to compare. It is
            # verified by a twin that keeps the weak peaks as well.
            threshold = graph_score_threshold if finds_instances(model, graph_score_threshold) else 0.0
            temporary.write_bytes(_serialized(model, info, threshold, precision))
            report = verify(model, temporary, score_threshold=threshold, weights=precision)
            if threshold != graph_score_threshold:
                temporary.write_bytes(_serialized(model, info, graph_score_threshold, precision))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        model.train(was_training)
    return report


def _serialized(model: CenterMask, info: ModelInfo, score_threshold: float, precision: Precision) -> bytes:
    """The whole file."""
    proto = to_onnx(model, score_threshold)
    if precision == "fp16":
        store_weights_as_half(proto.graph)
    helper.set_model_props(proto, info.to_metadata())
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


class _Deployed(nn.Module):
    """`CenterMask.deploy` as a module with a tuple of tensors for output."""

    def __init__(self, model: CenterMask, score_threshold: float) -> None:
        super().__init__()
        self.model = model
        self.score_threshold = score_threshold
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for value in self.model.deploy(image, self.score_threshold) if value is not None)


def to_onnx(model: CenterMask, score_threshold: float = GRAPH_SCORE_THRESHOLD) -> onnx.ModelProto:
    """The graph of a model in eval mode, with dynamic batch, height and width; without metadata."""
    names = list(_OUTPUT_SHAPES)[: 4 if model.mask_params is None else 6]
    example = torch.zeros(2, 3, 128, 192, device=next(model.parameters()).device)
    dim = torch.export.Dim
    dynamic = {"image": {0: dim("N", min=1, max=4096), 2: 32 * dim("rows", max=512), 3: 32 * dim("columns", max=512)}}
    with _quiet():
        program = torch.onnx.export(
            _Deployed(model, score_threshold),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_shapes=dynamic,
            custom_translation_table=_TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    fold_batch_norms(proto.graph)
    _name_shapes(proto.graph, model)
    del proto.graph.value_info[:]  # names torch's internal symbols; every runtime infers its own
    proto.producer_name, proto.doc_string = "centermask", ""
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


# ---- translations of operators ----


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
    if bias is None:
        bias = op.Constant(value=numpy_helper.from_array(np.zeros(channels, np.float32)))
    if mask is None:
        first, last, axis = (_integers(value) for value in (0, offset_groups * taps, 1))
        shape = op.Shape(op.Slice(offset, first, last, axis))
        mask = op.ConstantOfShape(shape, value=numpy_helper.from_array(np.ones(1, np.float32)))
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


_TRANSLATIONS: dict[Any, Any] = {
    torch.ops.centermask.deform_conv2d.default: _deform_conv2d,
    torch.ops.aten.div.Tensor_mode: _integer_division,
    torch.ops.aten.div.Scalar_mode: _integer_division,
}


# ---- the graph afterwards ----


def fold_batch_norms(graph: onnx.GraphProto) -> int:
    """Folds each BatchNormalization that follows a DeformConv into its weights; runtimes do so for Conv alone.

    Returns:
        How many were folded.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    folded = 0
    for node in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(node.input[0])
        if conv is None or conv.op_type != "DeformConv" or readers[node.input[0]] != 1:
            continue
        names = [conv.input[1], conv.input[3], *node.input[1:5]]
        if not all(name in constants for name in names):
            continue
        weight, bias, scale, shift, mean, variance = (constants[name].astype(np.float64) for name in names)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        # New constants, as the exporter lets layers of equal values share theirs.
        for place, value in ((1, weight * factor[:, None, None, None]), (3, (bias - mean) * factor + shift)):
            conv.input[place] = f"{conv.output[0]}.folded.{place}"
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), conv.input[place]))
        conv.output[0] = node.output[0]
        graph.node.remove(node)
        folded += 1
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    return folded


def store_weights_as_half(graph: onnx.GraphProto, smallest: int = 1024) -> None:
    """Stores float32 constants of `smallest` elements or more as float16, each followed by a Cast back to float32.

    Runtimes compute constant expressions once, when they load the file: nothing is slower afterwards.

    Raises:
        ValueError: A weight is too large for float16.
    """
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < smallest:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ValueError(f"export: {tensor.name} does not fit float16: its largest is {np.abs(values).max()}")
        name = tensor.name
        half = f"{name}.half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], name=f"{name}.widen", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _name_shapes(graph: onnx.GraphProto, model: CenterMask) -> None:
    """Readable names for the dynamic sizes of input and outputs; sizes that are fixed get their numbers."""
    fixed = {"P": model.config.mask_params, "M": model.config.mask_channels}
    shapes = {"image": ("N", 3, "H", "W"), **_OUTPUT_SHAPES}
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes[value.name], strict=True):
            dim.Clear()
            size = fixed.get(size, size) if isinstance(size, str) else size
            if isinstance(size, int):
                dim.dim_value = size
            else:
                dim.dim_param = size
