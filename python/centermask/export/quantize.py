"""Static quantisation: convolutions in 8 bits, with scales that pictures of a folder give."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from centermask.config import PreprocessConfig
from centermask.preprocess import load_image, prepare

MOST_PICTURES = 100
"""More of them change scales by little, and each takes the time of a prediction."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def quantize(model: onnx.ModelProto, folder: str | os.PathLike[str], preprocess: PreprocessConfig) -> onnx.ModelProto:
    """The model with its convolutions between QuantizeLinear and DequantizeLinear.

    Weights are int8 with a scale for each output channel; activations are uint8. Left in float32 are deformable
    convolutions and the convolutions that make their offsets (an error of a hundredth of a scale moves a sample by a
    pixel and more), the last convolution of the heatmap, and everything after the decoding.

    Args:
        model: A graph in float32.
        folder: Of pictures, searched through; evenly spread ones of up to `MOST_PICTURES` are used.
        preprocess: How they become the network's input.

    Raises:
        ValueError: There are no pictures in the folder.
    """
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    pictures = _pictures(folder)
    functions = list(model.functions)
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "float32.onnx", Path(temporary) / "int8.onnx"
        onnx.save(_named(model), source)
        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)  # it recommends a preprocessing that torch.onnx has done already
        try:
            quantize_static(
                source,
                target,
                _Reader(pictures, preprocess),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "ConvTranspose", "Relu", "Clip", "Add", "MaxPool", "GlobalAveragePool"],
                nodes_to_exclude=_sensitive(model.graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"ActivationSymmetric": False},
            )
        except Exception as error:  # the runtime's exceptions share no base class of their own
            if "NOT_IMPLEMENTED" not in str(error):
                raise
            raise ValueError(
                "export: int8 of a model with deformable convolutions needs onnxruntime >= 1.25"
            ) from error
        finally:
            logger.setLevel(level)
        quantized = onnx.load(target)
    if functions and not quantized.functions:
        quantized.functions.extend(functions)
    quantized.ir_version = model.ir_version
    quantized.producer_name, quantized.doc_string = model.producer_name, ""
    _keep_domains(model, quantized)
    return quantized


def _pictures(folder: str | os.PathLike[str]) -> list[Path]:
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"export: calibration folder {os.fspath(folder)} has no pictures")
    count = min(len(found), MOST_PICTURES)
    return [found[i * len(found) // count] for i in range(count)]


class _Reader:
    """What the quantizer draws inputs from, one at a time."""

    def __init__(self, pictures: list[Path], preprocess: PreprocessConfig) -> None:
        self._inputs: Iterator[dict[str, NDArray[Any]]] = (
            {"image": prepare(load_image(path), preprocess)[0][None]} for path in pictures
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._inputs, None)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The quantizer leaves out nodes by name: every node needs one."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def _sensitive(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that stay in float32 (see `quantize`), and of all that come after the decoding."""
    producers = {name: node for node in graph.node for name in node.output}
    convolutions = ("Conv", "ConvTranspose")
    kept: set[str] = set()

    def source_of(name: str) -> None:
        """The nearest convolution above a value."""
        node = producers.get(name)
        while node is not None and node.op_type not in convolutions:
            node = producers.get(node.input[0]) if node.input else None
        if node is not None:
            kept.add(node.name)

    after: set[str] = set()
    for node in graph.node:
        if node.op_type == "DeformConv":
            kept.add(node.name)
            for name in node.input[2:]:
                source_of(name)
        if node.op_type in ("DecodeCenters", "TopK"):
            source_of(node.input[0])
            after.update(node.output)
        if node.op_type == "GatherPatches" or any(name in after for name in node.input):
            kept.add(node.name)
            after.update(node.output)
    return sorted(kept)


def _keep_domains(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """Domains that were imported before and are no longer."""
    known = {entry.domain for entry in quantized.opset_import}
    for entry in model.opset_import:
        if entry.domain not in known:
            quantized.opset_import.append(helper.make_opsetid(entry.domain, entry.version))
