"""From a checkpoint to an `.onnx` file of the contract: decode and sparse heads in the graph, masks by the core."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from centermask.config import STRIDE, SizePolicy
from centermask.export import translations
from centermask.export.functions import add_functions, quiet
from centermask.export.graph import fold_batch_norms, fuse_relu, store_weights_as_half
from centermask.export.quantize import quantize
from centermask.export.verify import Report, finds_instances, verify
from centermask.files import make_room, temporary_path
from centermask.metadata import ModelInfo
from centermask.nn.model import CenterMask
from centermask.training.checkpoint import load_checkpoint

Profile = Literal["fused", "standard", "decomposed"]
Precision = Literal["fp32", "fp16", "int8"]
Masks = Literal["none", "rle"]

OPSETS: Mapping[Profile, int] = {"fused": 19, "standard": 19, "decomposed": 18}
"""DeformConv came with 19, which ONNX Runtime has kernels for since 1.16."""

IR_VERSION = 9
"""Of the file format: the newest that ONNX Runtime 1.15 reads."""

GRAPH_SCORE_THRESHOLD = 0.05
"""The graph keeps every peak above it; the Predictor filters further."""

_INPUT_SHAPES: Mapping[str, tuple[str | int, ...]] = {
    "image": ("N", 3, "H", "W"),
    "image_to_input": ("N", 2, 3),
    "image_size": ("N", 2),
}
_OUTPUT_SHAPES: Mapping[str, tuple[str | int, ...]] = {
    "boxes": ("N", "K", 4),
    "scores": ("N", "K"),
    "labels": ("N", "K"),
    "count": ("N",),
    "mask_params": ("N", "K", "P"),
    "mask_features": ("N", "M", "H/4", "W/4"),
    "rle_counts": ("R",),
    "rle_offsets": ("N*K+1",),
}


def export(
    model: str | os.PathLike[str] | CenterMask,
    path: str | os.PathLike[str],
    *,
    profile: Profile = "fused",
    precision: Precision = "fp32",
    masks: Masks = "none",
    size: int | None = None,
    opset: int | None = None,
    calibration: str | os.PathLike[str] | None = None,
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
        profile: `fused`: our operators, with their meaning in ONNX's own beside them, for runtimes that lack our
            library. `standard`: operators of ONNX alone, DeformConv among them. `decomposed`: those that every runtime
            has.
        precision: `fp16`: the stored weights; the runtime widens them when it loads the file, and all arithmetic is
            float32. `int8`: convolutions in 8 bits (QDQ), with scales from the pictures of `calibration`; deformable
            convolutions, decoding and sparse heads stay float32.
        masks: `rle` (profile `fused` alone): finished masks as run lengths among the outputs; such a file needs our
            library. What the masks are made from is verified, the run lengths are not compared.
        size: Side of the input in pixels, a multiple of 32: pictures are scaled into such a square. None leaves height
            and width dynamic. The batch is always dynamic.
        opset: Of ONNX, 18 or 19; None takes what the profile needs. 18 is for ONNX Runtime 1.15, which lacks parts of
            19: with the profile `fused` such a file needs our library if there are deformable convolutions in it.
        calibration: For `int8`: a folder of pictures of the kind that the model is for; a hundred do.
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
    _check_settings(profile, precision, masks, size, opset, calibration)
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
    if masks == "rle" and model.mask_params is None:
        raise ValueError("export: masks='rle' needs a model with masks, and this one has boxes alone")
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
    if size is not None:
        policy: SizePolicy = "fixed_index" if info.preprocess.policy == "fixed_index" else "fixed"
        info = replace(info, preprocess=replace(info.preprocess, size=size, policy=policy))
    was_training = model.training
    model.eval()
    try:
        temporary = temporary_path(path)
        try:

            def write(threshold: float) -> None:
                proto = to_onnx(model, threshold, profile, masks, size, opset)
                if precision == "int8":
                    assert calibration is not None
                    proto = quantize(proto, calibration, info.preprocess)
                elif precision == "fp16":
                    store_weights_as_half(proto.graph)
                temporary.write_bytes(_serialized(proto, info))

            # A model that finds nothing in the pictures of the verification would leave nothing to compare. It is
            # verified by a twin that keeps the weak peaks as well.
            threshold = graph_score_threshold if finds_instances(model, graph_score_threshold, info.preprocess) else 0.0
            write(threshold)
            report = verify(model, temporary, score_threshold=threshold, weights=precision, preprocess=info.preprocess)
            if threshold != graph_score_threshold:
                write(graph_score_threshold)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        model.train(was_training)
    return report


def _check_settings(
    profile: str, precision: str, masks: str, size: int | None, opset: int | None, calibration: Any
) -> None:
    for name, value, kind in (
        ("profile", profile, Profile),
        ("precision", precision, Precision),
        ("masks", masks, Masks),
    ):
        if value not in get_args(kind):
            raise ValueError(f"export: {name} must be one of {', '.join(get_args(kind))}; got {value!r}")
    if masks == "rle" and profile != "fused":
        raise ValueError(f"export: masks='rle' needs the profile fused, got {profile!r}")
    if size is not None and (size < 32 or size % 32):
        raise ValueError(f"export: size must be a multiple of 32, got {size}")
    if opset not in (None, 18, 19) or (opset == 18 and profile == "standard"):
        raise ValueError(f"export: opset must be 18 (not for the profile standard) or 19, got {opset}")
    if (precision == "int8") != (calibration is not None):
        raise ValueError("export: precision='int8' and calibration (a folder of pictures) need each other")
    if precision == "int8" and (masks == "rle" or opset == 18):
        # The quantizer runs the graph by the definitions of our operators, and these have none.
        raise ValueError("export: precision='int8' goes with masks='none' and opset 19 only")


def _serialized(proto: onnx.ModelProto, info: ModelInfo) -> bytes:
    """The whole file."""
    helper.set_model_props(proto, info.to_metadata())
    # Types of nodes of our domain cannot be inferred by ONNX.
    onnx.checker.check_model(proto, full_check=info.profile != "fused")
    data: bytes = proto.SerializeToString()
    return data


class _Deployed(nn.Module):
    """`CenterMask.deploy` as a module with a tuple of tensors for output."""

    def __init__(self, model: CenterMask, score_threshold: float, *, fused: bool) -> None:
        super().__init__()
        self.model = model
        self.score_threshold = score_threshold
        self.operators: dict[str, Any] = (
            {"decode": translations.decode_centers, "gather": translations.gather_patches} if fused else {}
        )
        self.eval()

    def forward(
        self, image: Tensor, image_to_input: Tensor | None = None, image_size: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        found = self.model.deploy(image, self.score_threshold, **self.operators)
        outputs = tuple(value for value in found if value is not None)
        if image_to_input is None:
            return outputs
        config = self.model.config
        return outputs + tuple(
            torch.ops.centermask_export.assemble_masks(
                found.mask_features,
                found.mask_params,
                found.boxes,
                found.labels,
                found.count,
                image_to_input,
                image_size,
                config.mask_head,
                STRIDE,
                config.box_margin,
            )
        )


def to_onnx(
    model: CenterMask,
    score_threshold: float = GRAPH_SCORE_THRESHOLD,
    profile: Profile = "standard",
    masks: Masks = "none",
    size: int | None = None,
    opset: int | None = None,
) -> onnx.ModelProto:
    """The graph of a model in eval mode, with dynamic batch, height and width; without metadata. See `export`."""
    names = list(_OUTPUT_SHAPES)[: 4 if model.mask_params is None else 6] + [
        name for name in ("rle_counts", "rle_offsets") if masks == "rle"
    ]
    device = next(model.parameters()).device
    height, width = (size, size) if size is not None else (128, 192)
    example = [torch.zeros(2, 3, height, width, device=device)]
    dim = torch.export.Dim
    batch = dim("N", min=1, max=4096)
    places = {} if size is not None else {2: 32 * dim("rows", max=512), 3: 32 * dim("columns", max=512)}
    dynamic: dict[str, Any] = {"image": {0: batch, **places}}
    if masks == "rle":
        example.append(torch.zeros(2, 2, 3, dtype=torch.float64, device=device))
        example.append(torch.zeros(2, 2, dtype=torch.int64, device=device))
        dynamic |= {"image_to_input": {0: batch}, "image_size": {0: batch}}
    table = {
        "fused": translations.FUSED,
        "standard": translations.STANDARD,
        "decomposed": translations.DECOMPOSED,
    }[profile]
    with quiet():
        program = torch.onnx.export(
            _Deployed(model, score_threshold, fused=profile == "fused"),
            tuple(example),
            dynamo=True,
            opset_version=OPSETS[profile] if opset is None else opset,
            input_names=list(_INPUT_SHAPES)[: len(example)],
            output_names=names,
            dynamic_shapes=dynamic,
            custom_translation_table=table,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    fold_batch_norms(proto.graph)
    if profile == "fused":
        has_relu = fuse_relu(proto.graph, translations.DOMAIN)
        if translations.DOMAIN not in {entry.domain for entry in proto.opset_import}:
            proto.opset_import.append(helper.make_opsetid(translations.DOMAIN, 1))
        add_functions(proto, relu=has_relu)
    _name_shapes(proto.graph, model, size)
    del proto.graph.value_info[:]  # names torch's internal symbols; every runtime infers its own
    proto.producer_name, proto.doc_string = "centermask", ""
    proto.ir_version = IR_VERSION
    return proto


def _name_shapes(graph: onnx.GraphProto, model: CenterMask, size: int | None) -> None:
    """Readable names for the dynamic sizes of input and outputs; sizes that are fixed get their numbers."""
    fixed = {"P": model.config.mask_params, "M": model.config.mask_channels}
    if size is not None:
        fixed |= {"H": size, "W": size, "H/4": size // STRIDE, "W/4": size // STRIDE}
    shapes = {**_INPUT_SHAPES, **_OUTPUT_SHAPES}
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for wanted in shapes[value.name]:
            extent = fixed.get(wanted, wanted) if isinstance(wanted, str) else wanted
            if isinstance(extent, int):
                shape.dim.add().dim_value = extent
            else:
                shape.dim.add().dim_param = extent
