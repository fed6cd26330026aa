"""The profiles of an exported model: the same instances from each, with our library and without; finished masks."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
import torch
from test_export import build, outputs_of

from centermask import Predictor, ops, ort
from centermask.cli import sample_picture
from centermask.export.onnx import export
from centermask.export.verify import compare
from centermask.metadata import ModelFileError
from centermask.nn.model import CenterMask
from centermask.predictor import model_path
from centermask.preprocess import load_image, prepare
from centermask.session import NetworkOutput, OnnxNetwork

HAS_DEFORM_CONV = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 25)
NAMES = ("test_efficientnet-dcn-dynamic", "test_efficientnet-conv-shape")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> CenterMask:
    return build(request.param)


@pytest.fixture(scope="module")
def dcn() -> CenterMask:
    return build(NAMES[0])


def instances_agree(model: CenterMask, path: Path, shape: tuple[int, ...], library: bool = True) -> None:
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    report = compare([(outputs_of(model, images), OnnxNetwork(path, threads=1, library=library)(images))], 0.05, 1e-3)
    assert report.unmatched == 0, report.table()
    assert report.matched > 0
    # float32 sums in another order, see verify.TOLERANCES
    assert all(error.relative < 1e-3 for error in report.errors), report.table()


@pytest.mark.parametrize("profile", ["fused", "decomposed"])
def test_profiles_give_what_torch_gives(model: CenterMask, profile: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert export(model, path, profile=profile).passed
    for shape in ((1, 3, 32, 32), (3, 3, 64, 224)):
        instances_agree(model, path, shape)
        if profile == "decomposed" or HAS_DEFORM_CONV:
            instances_agree(model, path, shape, library=False)
    proto = onnx.load(path)
    ours = {node.op_type for node in proto.graph.node if node.domain == "centermask"}
    operators = {node.op_type for node in proto.graph.node}
    if profile == "fused":
        assert ours == {"DecodeCenters", "GatherPatches"} | ({"DeformConv"} if "dcn" in model.config.name else set())
        assert {function.name for function in proto.functions} == ours
    else:
        assert not ours | (operators & {"DeformConv"})
    assert Predictor(path).info.profile == profile


def test_the_library_runs_its_operators_and_not_their_definitions(dcn: CenterMask, tmp_path: Path) -> None:
    export(dcn, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.register(options)
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    kinds = [(node.domain, node.op_type) for node in nodes]
    assert kinds.count(("centermask", "DeformConv")) == 3
    assert kinds.count(("centermask", "DecodeCenters")) == 1
    assert not {"TopK", "GatherElements"} & {name for _, name in kinds}
    assert "Relu" not in {nodes[i + 1].op_type for i, kind in enumerate(kinds[:-1]) if kind[1] == "DeformConv"}


def test_masks_of_the_graph_are_those_of_the_predictor(model: CenterMask, tmp_path: Path) -> None:
    path = tmp_path / "rle.onnx"
    export(model, path, masks="rle")
    pictures = [load_image(sample_picture())[:h, :w] for h, w in ((300, 200), (311, 205))]
    prepared = [prepare(picture, model.config.preprocess) for picture in pictures]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    ort.register(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {
        "image": np.stack([image for image, _ in prepared]),
        "image_to_input": np.stack([matrix for _, matrix in prepared]),
        "image_size": np.array([picture.shape[:2] for picture in pictures]),
    }
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    runs, offsets, top_k = outputs["rle_counts"], outputs["rle_offsets"], model.config.top_k
    assert (runs.dtype, offsets.dtype, offsets.shape) == (np.uint32, np.int64, (2 * top_k + 1,))
    for n, picture in enumerate(pictures):
        count = int(outputs["count"][n])
        assert count > 5
        expected = ops.assemble_masks(
            outputs["mask_features"][n],
            outputs["mask_params"][n, :count],
            outputs["boxes"][n, :count],
            head=model.config.mask_head,
            image_size=picture.shape[:2],
            image_to_input=prepared[n][1],
            labels=outputs["labels"][n, :count],
            box_margin=model.config.box_margin,
        )
        for k, mask in enumerate(expected):
            own = runs[offsets[n * top_k + k] : offsets[n * top_k + k + 1]]
            bitmap = np.repeat(np.arange(len(own)) % 2, own).reshape(picture.shape[1], picture.shape[0]).T
            # The margin is float32 in the file: a row of pixels at the box's edge may differ.
            assert (bitmap != ops.rle_decode(mask)).mean() < 1e-3
        assert (np.diff(offsets[n * top_k + count : (n + 1) * top_k + 1]) == 0).all()
    # The Predictor makes masks itself, after it has chosen: by such a file as by any other.
    export(model, tmp_path / "plain.onnx")
    a, b = Predictor(path)(pictures[0]), Predictor(tmp_path / "plain.onnx")(pictures[0])
    assert len(a) == len(b) > 0
    assert a.masks.rle == b.masks.rle


def test_opset_18_is_for_the_oldest_runtime(dcn: CenterMask, tmp_path: Path) -> None:
    """ONNX Runtime 1.15 has no Shape of opset 19; DeformConv has no meaning in ONNX before 19."""
    path = tmp_path / "old.onnx"
    assert export(dcn, path, opset=18).passed
    instances_agree(dcn, path, (1, 3, 64, 96))
    proto = onnx.load(path)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 18, "centermask": 1}
    assert {function.name for function in proto.functions} == {"DecodeCenters", "GatherPatches"}
    with pytest.raises(ModelFileError, match="operators of this package"):
        OnnxNetwork(path, library=False)


def test_a_fixed_size(dcn: CenterMask, tmp_path: Path) -> None:
    export(dcn, tmp_path / "fixed.onnx", profile="standard", size=96)
    proto = onnx.load(tmp_path / "fixed.onnx")
    sizes = [dim.dim_value or dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["N", 3, 96, 96]
    predictor = Predictor(tmp_path / "fixed.onnx", score_threshold=0.0)
    assert (predictor.info.preprocess.size, predictor.info.preprocess.policy) == (96, "fixed")
    assert len(predictor(sample_picture())) > 0
    assert len(predictor(load_image(sample_picture())[:50])) > 0


def test_int8(tmp_path: Path) -> None:
    """With the embedded model's weights: random ones have no redundancy and lose their peaks in 8 bits."""
    checkpoint = Path(__file__).resolve().parents[2] / "checkpoints" / "default.pt"
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    image = load_image(sample_picture())
    for i in range(4):
        cv2.imwrite(str(tmp_path / "pictures" / "more" / f"{i}.jpg"), image[i * 40 : i * 40 + 200])
    export(checkpoint, tmp_path / "fp32.onnx", size=256)
    report = export(checkpoint, tmp_path / "int8.onnx", precision="int8", calibration=tmp_path / "pictures", size=256)
    assert report.matched > 0
    proto = onnx.load(tmp_path / "int8.onnx")
    quantized = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in proto.graph.node:
        if node.op_type in ("DeformConv", "DecodeCenters"):
            # Weights, offsets and mask; the heatmap.
            assert not quantized & set(node.input[1:] if node.op_type == "DeformConv" else node.input)
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert sum(node.input[1] in quantized for node in convolutions) > 0.7 * len(convolutions)
    # On a picture of the kind that the scales were made for, mask features keep most of what they were.
    images = np.stack([prepare(image, Predictor(tmp_path / "int8.onnx").info.preprocess)[0]])
    exact, rough = (
        OnnxNetwork(tmp_path / name, threads=1)(images).mask_features[0] for name in ("fp32.onnx", "int8.onnx")
    )
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(exact, rough, strict=True)]
    assert 0.8 < np.mean(alike) < 0.999999


def test_int8_needs_pictures(dcn: CenterMask, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no pictures"):
        export(dcn, tmp_path / "int8.onnx", precision="int8", calibration=tmp_path / "empty")
    assert not (tmp_path / "int8.onnx").exists()


# ---- without the library ----


def test_without_the_library_the_definitions_run_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ort, "LIBRARY", "libnothing.so")
    if not HAS_DEFORM_CONV:
        with pytest.raises(ModelFileError, match=r"libnothing\.so"):
            Predictor()
        return
    with caplog.at_level(logging.INFO):
        predictor = Predictor(device="cpu", threads=1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("default.onnx runs by ONNX's own operators, which is slower: ")
    assert "libnothing.so: no such file" in record.getMessage()
    monkeypatch.undo()
    caplog.clear()
    ours = Predictor(device="cpu", threads=1)
    assert not caplog.records
    a, b = predictor(sample_picture()), ours(sample_picture())
    assert a.names == b.names
    np.testing.assert_allclose(a.boxes, b.boxes, atol=0.05)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


def test_a_runtime_without_deform_conv_is_told_what_would_help() -> None:
    from centermask.session import explain_failure

    message = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for DeformConv(19) node"
    text = explain_failure(Path("a.onnx"), message, "1.23.2")
    assert "needs onnxruntime >= 1.25" in text
    assert "--profile fused or decomposed" in text


@pytest.mark.parametrize("name", ["default", "nuclei"])
def test_embedded_models_run_in_the_oldest_runtime(name: str) -> None:
    """What 1.15 reads: IR version 9, opset 19. (The matrix of runtimes is run by scripts/ort_matrix.py.)"""
    proto = onnx.load(model_path(name))
    assert proto.ir_version <= 9
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 19, "centermask": 1}
    assert {entry.version for function in proto.functions for entry in function.opset_import} == {19}


def test_a_file_for_a_newer_version_of_the_contract(tmp_path: Path) -> None:
    proto = onnx.load(model_path("default"))
    next(entry for entry in proto.metadata_props if entry.key == "centermask.version").value = "2"
    onnx.save(proto, tmp_path / "newer.onnx")
    with pytest.raises(ModelFileError, match="written for contract version 2"):
        Predictor(tmp_path / "newer.onnx")


# ---- converted detectors ----


def test_a_converted_centernet_gives_the_boxes_of_torch(tmp_path: Path) -> None:
    """CenterNet's resdcn18, converted, as `fused`: the boxes of PyTorch, and those that the project's own code gave."""
    import golden_weights
    from test_convert import GOLDEN, assert_same_boxes, write

    from centermask.convert.convert import convert
    from centermask.nn.model import Detections
    from centermask.training.checkpoint import save_checkpoint

    golden = np.load(GOLDEN / "centernet_resdcn_18.npz")
    weights = golden_weights.weights_for(json.loads(str(golden["shapes"])))
    names = [f"class {i}" for i in range(weights["hm.2.weight"].shape[0])]
    converted = convert(write("centernet", weights, tmp_path / "peer.pth"), class_names=names)
    save_checkpoint(tmp_path / "peer.pt", converted.checkpoint)
    assert export(tmp_path / "peer.pt", tmp_path / "peer.onnx", graph_score_threshold=0.0).passed
    network = OnnxNetwork(tmp_path / "peer.onnx", device="cpu", threads=2)
    assert network.uses_library
    images = golden_weights.image()
    found = network(images.numpy())
    model = converted.checkpoint.build()
    with torch.no_grad():
        expected = model.deploy(images, 0.0)
    count = int(expected.count[0])
    assert count == int(found.count[0]) > 10
    tensors = [None if value is None else torch.from_numpy(value) for value in found]
    assert_same_boxes(
        Detections(*tensors), expected.boxes[0, :count], expected.scores[0, :count], expected.labels[0, :count]
    )
    assert_same_boxes(Detections(*tensors), *(torch.from_numpy(golden[key]) for key in ("boxes", "scores", "labels")))


@pytest.mark.parametrize("name", ["test_efficientnet-dcn-dynamic", "test_efficientnet-conv-shape"])
def test_openvino(name: str, tmp_path: Path) -> None:
    """OpenVINO 2026.4 has no rule for ONNX's DeformConv: models with it run there as `decomposed`, others as either."""
    openvino = pytest.importorskip("openvino")
    model = build(name)
    images = np.random.default_rng(1).normal(size=(1, 3, 64, 96)).astype(np.float32)
    expected = outputs_of(model, images)
    for profile in ("decomposed",) if "dcn" in name else ("decomposed", "standard"):
        export(model, tmp_path / "model.onnx", profile=profile)
        compiled = openvino.Core().compile_model(
            str(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled(images)
        outputs = NetworkOutput(*(found[field] for field in NetworkOutput._fields))
        report = compare([(expected, outputs)], 0.05, 1e-3)
        assert report.passed, f"{profile}\n{report.table()}"


def test_torch_modes_are_left_as_they_were(dcn: CenterMask, tmp_path: Path) -> None:
    dcn.train()
    try:
        with pytest.raises(ValueError, match="boxes alone"):
            export(build("test_efficientnet-conv-none"), tmp_path / "a.onnx", masks="rle")
        export(dcn, tmp_path / "b.onnx", size=64)
        assert dcn.training
        assert torch.is_grad_enabled()
    finally:
        dcn.eval()
    assert replace(dcn.config) == dcn.config
