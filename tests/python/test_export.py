"""Export: the file gives what PyTorch gives, at any size; its contract; rounding of weights; nothing half-written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import onnx
import torch
from onnx import helper, numpy_helper

from centermask import Predictor
from centermask.cli import sample_picture
from centermask.config import ModelConfig, PreprocessConfig
from centermask.export.onnx import export, fold_batch_norms, store_weights_as_half
from centermask.export.verify import VerifyError, compare, match
from centermask.nn.model import CenterMask
from centermask.preprocess import load_image
from centermask.session import NetworkOutput, OnnxNetwork
from centermask.training.checkpoint import Checkpoint, save_checkpoint
from centermask.training.torch_network import TorchNetwork

NAMES = ("test_efficientnet-dcn-dynamic", "test_efficientnet-conv-shape")
BOXES_ONLY = "test_efficientnet-conv-none"


def build(name: str) -> CenterMask:
    """A small model whose every parameter matters: random norms, offsets away from zero, scores of all sizes."""
    torch.manual_seed(5)
    config = ModelConfig.from_name(name, class_names=("cat", "dog", "cow"), category_ids=(17, 18, 21), top_k=30)
    config = replace(config, neck_channels=(32, 24, 16), preprocess=PreprocessConfig(size=128, color="bgr"))
    model = CenterMask(config)
    generator = torch.Generator().manual_seed(6)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
            module.momentum = 1.0  # one picture sets the statistics: every layer's output is then of order one
        elif name.endswith("conv_offset"):
            module.weight.data.normal_(0, 0.02, generator=generator)
            module.bias.data.normal_(0, 1.0, generator=generator)
        elif name.split(".")[0] in ("heatmap", "size", "mask_params") and name.endswith("out"):
            module.weight.data.normal_(0, 0.2, generator=generator)
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 128, 128, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    model = build(request.param)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    settings = {"score_threshold": 0.25, "training_data": "nothing", "ap": {"toys mask_ap": 0.5}}
    report = export(model, path, profile="standard", **settings)
    return model, path, report


def outputs_of(model: CenterMask, images: np.ndarray) -> NetworkOutput:
    return TorchNetwork(model)(images)


def test_the_report_passed_and_names_every_output(exported) -> None:
    _, path, report = exported
    assert {error.name for error in report.errors} == {"boxes", "scores", "mask_params", "mask_features"}
    assert report.passed
    assert report.matched > 50
    assert min(error.relative for error in report.errors) > 0  # of constant outputs the error would say nothing
    assert "instances agree" in report.table()
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 64, 224), (1, 3, 320, 96)])
def test_any_batch_and_size(exported, shape: tuple[int, ...]) -> None:
    model, path, _ = exported
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected, actual = outputs_of(model, images), OnnxNetwork(path, threads=1)(images)
    report = compare([(expected, actual)], 0.05, 1e-3)
    assert report.unmatched == 0, report.table()
    # float32 sums in another order, see verify.TOLERANCES
    assert all(error.relative < 1e-3 for error in report.errors), report.table()
    for name, a, b in zip(NetworkOutput._fields, expected, actual, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape, name
            assert a.dtype == b.dtype, name


def test_rows_after_count_are_empty(exported) -> None:
    _, path, _ = exported
    output = OnnxNetwork(path, threads=1)(np.random.default_rng(2).normal(size=(2, 3, 32, 32)).astype(np.float32))
    for n, count in enumerate(output.count):
        assert (output.labels[n, :count] >= 0).all()
        assert (output.labels[n, count:] == -1).all()
        for values in (output.boxes, output.scores, output.mask_params):
            if values is not None:
                assert not values[n, count:].any()
        assert (np.diff(output.scores[n]) <= 0).all()


def test_the_file_follows_the_contract(exported) -> None:
    model, path, _ = exported
    proto = onnx.load(path)
    assert [value.name for value in proto.graph.input] == ["image"]
    assert [value.name for value in proto.graph.output] == list(NetworkOutput._fields)
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 19}
    for node in proto.graph.node:
        if node.op_type == "DeformConv":  # TensorRT: mask and bias given, pads symmetric
            assert len(node.input) == 5
            assert all(node.input)
            pads = next(list(attribute.ints) for attribute in node.attribute if attribute.name == "pads")
            assert pads[:2] == pads[2:]
    assert ("DeformConv" in {node.op_type for node in proto.graph.node}) == ("dcn" in model.config.name)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    # Indices beyond 2^24 are not whole numbers in float32: no division of them may go through it.
    floors = [node for node in proto.graph.node if node.op_type == "Floor"]
    assert not floors


def test_metadata_says_what_the_model_is(exported) -> None:
    model, path, _ = exported
    info = Predictor(path).info
    assert info.name == model.config.name
    assert info.class_names == ("cat", "dog", "cow")
    assert info.category_ids == (17, 18, 21)
    assert info.preprocess == model.config.preprocess
    assert (info.mask_head, info.top_k, info.profile) == (model.config.mask_head, 30, "standard")
    assert (info.score_threshold, info.training_data, info.ap) == (0.25, "nothing", (("toys mask_ap", 0.5),))


def test_predictor_gives_the_same_by_torch_and_by_onnx(exported) -> None:
    model, path, _ = exported
    image = load_image(sample_picture())[:300]
    by_torch = Predictor(TorchNetwork(model), score_threshold=0.0)(image)
    by_onnx = Predictor(path, score_threshold=0.0, threads=1)(image)
    # Scores of random weights lie close together: two that differ by rounding may change places, or with the 31st.
    pairs = [
        (i, j)
        for i in range(len(by_torch))
        for j in range(len(by_onnx))
        if by_torch.labels[i] == by_onnx.labels[j] and np.abs(by_torch.boxes[i] - by_onnx.boxes[j]).max() < 0.05
    ]
    assert len(pairs) >= 0.95 * max(len(by_torch), len(by_onnx)) > 5
    a = by_torch.masks.bitmaps()[[i for i, _ in pairs]]
    b = by_onnx.masks.bitmaps()[[j for _, j in pairs]]
    assert (a != b).mean(axis=(1, 2)).max() < 0.001  # masks of random weights are all edges, where a pixel may tip over


def test_precision_fp16_halves_the_file_and_keeps_the_arithmetic(exported, tmp_path: Path) -> None:
    model, path, _ = exported
    proto = onnx.load(path)
    store_weights_as_half(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 0.65 * path.stat().st_size
    for node in proto.graph.node:
        if any(name.endswith(".half") for name in node.input):
            assert node.op_type == "Cast"
            assert node.attribute[0].i == onnx.TensorProto.FLOAT
    images = np.random.default_rng(7).normal(size=(1, 3, 96, 96)).astype(np.float32)
    expected = outputs_of(model, images).mask_features
    error = np.abs(OnnxNetwork(tmp_path / "half.onnx", threads=1)(images).mask_features - expected).max()
    # A weight is off by up to 5e-4; some twenty layers of random weights make more of it, yet far less than all.
    assert 1e-6 < error / np.abs(expected).max() < 0.1


def test_boxes_alone_from_a_checkpoint_file(tmp_path: Path) -> None:
    model = build(BOXES_ONLY)
    checkpoint = Checkpoint(model.config, model.state_dict(), {}, {"data": ["toys", "pets"]})
    save_checkpoint(tmp_path / "a.pt", checkpoint)
    report = export(tmp_path / "a.pt", tmp_path / "a.onnx")
    assert {error.name for error in report.errors} == {"boxes", "scores"}
    predictor = Predictor(tmp_path / "a.onnx")
    assert predictor.info.training_data == "toys, pets"
    assert predictor.info.score_threshold == 0.3
    assert predictor(sample_picture()).masks is None


# ---- the graph's passes, by hand ----


def small_graph(*, bias_is_shared: bool) -> onnx.ModelProto:
    generator = np.random.default_rng(4)
    constants = {
        "w": generator.normal(size=(4, 3, 3, 3)),
        "b": generator.normal(size=4),
        "scale": generator.normal(size=4),
        "mean": generator.normal(size=4),
        "var": generator.uniform(0.5, 2, 4),
    }
    shift = "b" if bias_is_shared else "shift"
    if not bias_is_shared:
        constants["shift"] = generator.normal(size=4)
    nodes = [
        helper.make_node(
            "DeformConv", ["x", "w", "offset", "b", "mask"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        ),
        helper.make_node("BatchNormalization", ["y", "scale", shift, "mean", "var"], ["z"], epsilon=1e-3),
    ]
    inputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 5, 6)), ("offset", (1, 18, 5, 6)), ("mask", (1, 9, 5, 6)))
    ]
    outputs = [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, (1, 4, 5, 6))]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("bias_is_shared", [False, True])
def test_folding_a_norm_into_a_deformable_convolution(bias_is_shared: bool) -> None:
    import onnxruntime

    model = small_graph(bias_is_shared=bias_is_shared)
    generator = np.random.default_rng(5)
    feeds = {
        v.name: generator.normal(size=[d.dim_value for d in v.type.tensor_type.shape.dim]).astype(np.float32)
        for v in model.graph.input
    }

    def run() -> np.ndarray:
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, feeds
        )[0]

    before = run()
    assert fold_batch_norms(model.graph) == 1
    assert [node.op_type for node in model.graph.node] == ["DeformConv"]
    assert len(model.graph.initializer) == 2
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(), before, atol=1e-5)  # float32 rounding of sums of 27 terms


def test_weights_that_do_not_fit_float16_are_refused() -> None:
    model = small_graph(bias_is_shared=False)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 3, 3, 3), 1e6, np.float32), "w"))
    with pytest.raises(ValueError, match=re.escape("w does not fit float16: its largest is 1000000.0")):
        store_weights_as_half(model.graph, smallest=1)


# ---- verification ----


def output_of(boxes: list[list[float]], scores: list[float], labels: list[int], top_k: int = 4) -> NetworkOutput:
    n, empty = len(boxes), top_k - len(boxes)
    return NetworkOutput(
        np.array([boxes + [[0.0] * 4] * empty], np.float32),
        np.array([scores + [0.0] * empty], np.float32),
        np.array([labels + [-1] * empty]),
        np.array([n]),
    )


A, B, C = [0.0, 0, 10, 10], [20.0, 20, 40, 40], [60.0, 0, 70, 30]


def test_matching_survives_exchanged_rows() -> None:
    rows, columns, lonely = match(output_of([A, B], [0.5, 0.5], [0, 0]), output_of([B, A], [0.5, 0.5], [0, 0]), 0, 0.05)
    assert (rows, columns, lonely) == ([0, 1], [1, 0], 0)


@pytest.mark.parametrize(
    ("expected", "actual", "unexplained"),
    [
        (output_of([A, B], [0.9, 0.5], [0, 0]), output_of([A], [0.9], [0]), 1),
        (output_of([A, B], [0.9, 0.0502], [0, 0]), output_of([A], [0.9], [0]), 0),  # at the threshold
        (output_of([A, B], [0.9, 0.5], [0, 1]), output_of([A, B], [0.9, 0.5], [0, 2]), 2),  # another class
        (output_of([A, B], [0.9, 0.5], [0, 0], 2), output_of([A, C], [0.9, 0.5], [0, 0], 2), 0),  # last of the top K
    ],
)
def test_what_one_side_alone_found(expected: NetworkOutput, actual: NetworkOutput, unexplained: int) -> None:
    assert match(expected, actual, 0, 0.05)[2] == unexplained


def test_verification_fails_on_wrong_values_and_on_nan() -> None:
    expected = output_of([A, B], [0.9, 0.5], [0, 0])
    assert compare([(expected, expected)], 0.05, 1e-3).passed
    assert not compare([(expected, output_of([A, B], [0.9, 0.51], [0, 0]))], 0.05, 1e-3).passed
    nothing = output_of([], [], [])
    assert not compare([(nothing, nothing)], 0.05, 1e-3).passed  # no instance: nothing was verified
    assert not compare([(expected, output_of([A, B], [0.9, float("nan")], [0, 0]))], 0.05, 1e-3).passed


def test_a_model_that_finds_nothing_in_the_samples_is_exported_all_the_same(tmp_path: Path) -> None:
    model = build(BOXES_ONLY)
    with torch.no_grad():
        model.heatmap.out.bias.fill_(-9.0)
    report = export(model, tmp_path / "new" / "shy.onnx")
    assert report.passed
    assert report.matched > 0
    network = OnnxNetwork(tmp_path / "new" / "shy.onnx")
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    assert network(images).count.tolist() == [0], "the file itself has the threshold that was asked for"


def test_a_file_that_differs_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise VerifyError("differs")

    monkeypatch.setattr("centermask.export.onnx.verify", refuse)
    monkeypatch.setattr("centermask.export.onnx.to_onnx", lambda *_: small_graph(bias_is_shared=False))
    (tmp_path / "model.onnx").write_text("the old one")
    with pytest.raises(VerifyError):
        export(build(BOXES_ONLY), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "the old one"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "fast"}, "profile must be one of fused, standard, decomposed; got 'fast'"),
        ({"precision": "int4"}, "precision must be one of fp32, fp16, int8; got 'int4'"),
        ({"precision": "int8"}, "precision='int8' and calibration (a folder of pictures) need each other"),
        ({"calibration": "."}, "precision='int8' and calibration (a folder of pictures) need each other"),
        ({"masks": "rle", "profile": "standard"}, "masks='rle' needs the profile fused, got 'standard'"),
        ({"precision": "int8", "calibration": ".", "masks": "rle"}, "goes with masks='none' and opset 19 only"),
        ({"precision": "int8", "calibration": ".", "opset": 18}, "goes with masks='none' and opset 19 only"),
        ({"masks": "png"}, "masks must be one of none, rle; got 'png'"),
        ({"opset": 18, "profile": "standard"}, "opset must be 18 (not for the profile standard) or 19, got 18"),
        ({"opset": 17}, "opset must be 18 (not for the profile standard) or 19, got 17"),
        ({"size": 100}, "size must be a multiple of 32, got 100"),
        ({"score_threshold": 2.0}, "score_threshold must be in 0..1, got 2.0"),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        export(tmp_path / "none.pt", tmp_path / "out.onnx", **settings)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export(tmp_path / "none.pt", tmp_path / "out.onnx")
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=re.escape("bad.pt")):
        export(tmp_path / "bad.pt", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
