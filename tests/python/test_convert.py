"""Detectors of other projects: the same numbers before and after, and refusals that help."""

from __future__ import annotations

import collections
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("onnxscript")

import golden_weights
import published_models as published
import torch
from torch import nn

from centermask import Predictor
from centermask.cli import main
from centermask.config import ModelConfig
from centermask.convert.classes import COCO_IDS, COCO_NAMES, classes_for
from centermask.convert.common import ConvertError, resnet_depth
from centermask.convert.convert import convert
from centermask.export import verify
from centermask.export.onnx import Profile, export
from centermask.nn.model import CenterMask, Detections
from centermask.training.checkpoint import load_checkpoint
from centermask.training.torch_network import TorchNetwork

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLASSES = 5
NAMES = ("a", "b", "c", "d", "e")
FAMILIES: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {
    "resdcn_18": ("centernet", "resnet18-dcn-none", lambda: published.CenterNetResNet(18, True, CLASSES)),
    "resdcn_18 without reg": (
        "centernet",
        "resnet18-dcn-none",
        lambda: published.CenterNetResNet(18, True, CLASSES, reg=False),
    ),
    "resdcn_101": ("centernet", "resnet101-dcn-none", lambda: published.CenterNetResNet(101, True, CLASSES)),
    "res_18": ("centernet", "resnet18-deconv-none", lambda: published.CenterNetResNet(18, False, CLASSES)),
    "dla_34": ("centernet", "dla34-dlaup-none", lambda: published.CenterNetDla(CLASSES)),
    "mmdet r18 dcnv2": ("mmdet", "resnet18-dcn-none", lambda: published.Mmdet(True, CLASSES)),
    "mmdet r18": ("mmdet", "resnet18-conv-none", lambda: published.Mmdet(False, CLASSES)),
    "better r18": ("centernet-better", "resnet18-dcn-none", lambda: published.Better(18, True, CLASSES)),
    "better r50 conv": ("centernet-better", "resnet50-conv-none", lambda: published.Better(50, False, CLASSES)),
}


def write(family: str, weights: dict[str, torch.Tensor], path: Path) -> Path:
    """As that project writes its files."""
    if family == "centernet":
        values = {"epoch": 140, "state_dict": {f"module.{k}": v for k, v in weights.items()}}
    elif family == "mmdet":
        values = {"meta": {"epoch": 140, "seed": np.int64(3), "config": "model = ..."}, "state_dict": weights}
    else:
        values = {"model": weights, "iteration": 126000}
    torch.save(values, path)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(7))


def relative_errors(model: CenterMask, peer: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Largest error of heatmap logits, sizes and offsets, each divided by the largest value."""
    expected, dense = peer(images), model(images)
    ours = {"hm": dense.heatmap, "wh": model.size(dense.features)}
    if model.offset is not None:
        ours["reg"] = model.offset(dense.features)
    assert ours.keys() == expected.keys()
    return {key: float((ours[key] - value).abs().max() / value.abs().max()) for key, value in expected.items()}


def assert_same_boxes(found: Detections, boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> None:
    """The first picture's rows are the published ones: boxes [n, 4] in input pixels, scores and labels [n].

    Rounding may exchange rows of nearly equal scores, and the last ones. Sides below zero are zero here.
    """
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=0)
    boxes = torch.cat([center - half, center + half], 1)
    free = list(range(int(found.count[0])))
    for row in range(len(scores)):
        if scores[row] <= 0:  # no peak: the published code fills up with these
            continue
        same = [i for i in free if found.labels[0, i] == labels[row]]
        distance = (found.boxes[0, same] - boxes[row]).abs().amax(1)
        if len(same) and float(distance.min()) < 0.01:
            match = same[int(distance.argmin())]
            assert abs(float(found.scores[0, match] - scores[row])) < 1e-4
            free.remove(match)
        else:
            assert float(scores[row] - scores[-1]) < 1e-6, f"row {row} of the published boxes is missing"
    assert all(float(found.scores[0, i] - scores[-1]) < 1e-6 for i in free)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_same_numbers(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    family, model_name, build = FAMILIES[name]
    torch.manual_seed(sum(map(ord, name)))
    peer = published.randomise(build(), images)
    expected = peer(images)
    converted = convert(write(family, peer.state_dict(), tmp_path / "peer.pth"), class_names=NAMES)
    assert (converted.family, converted.config.name) == (family, model_name)
    model = converted.checkpoint.build()

    for errors, tolerance in (
        (relative_errors(model, peer, images), 1e-4),
        # In float64 rounding is out of the way: what remains would be another architecture. (The biases that have
        # gone into a norm were rounded to float32 there.)
        (relative_errors(model.double(), peer.double(), images.double()), 1e-6 if "50 conv" in name else 1e-10),
    ):
        print(name, {key: f"{error:.1e}" for key, error in errors.items()})
        assert max(errors.values()) <= tolerance, errors

    model.float()
    found = model.deploy(images, 0.0)
    assert int(found.count[0]) > 20
    boxes, scores, labels = published.decode(expected, model.config.top_k)
    assert_same_boxes(found, 4 * boxes, scores, labels)


GOLDEN_PEERS: dict[str, tuple[str, Callable[[], nn.Module] | None]] = {
    "centernet_res_18": ("centernet", lambda: published.CenterNetResNet(18, False, CLASSES)),
    "centernet_resdcn_18": ("centernet", lambda: published.CenterNetResNet(18, True, CLASSES)),
    "centernet_dla_34": ("centernet", lambda: published.CenterNetDla(CLASSES)),
    "mmdet_centernet_r18": ("mmdet", lambda: published.Mmdet(False, CLASSES)),
    "mmdet_centernet_r18_dcnv2": ("mmdet", lambda: published.Mmdet(True, CLASSES)),
    "better_r18": ("centernet-better", lambda: published.Better(18, True, CLASSES)),
    "better_r18_dcnv1": ("centernet-better", None),
}


@pytest.mark.parametrize("name", GOLDEN_PEERS)
@torch.no_grad()
def test_the_projects_own_code_gave_the_same_numbers(name: str, tmp_path: Path) -> None:
    family, build = GOLDEN_PEERS[name]
    golden = np.load(GOLDEN / f"{name}.npz")
    shapes = json.loads(str(golden["shapes"]))
    if build is not None:  # what the other tests build is what the project builds
        unused = ("base.fc.",)  # which comes with its ImageNet weights alone
        stated = {k: list(v.shape) for k, v in build().state_dict().items() if not k.startswith(unused)}
        assert stated == shapes
    weights = golden_weights.weights_for(shapes)
    model = convert(write(family, weights, tmp_path / "peer.pth"), class_names=NAMES).checkpoint.build()
    images = golden_weights.image()
    dense = model(images)
    ours = {"heatmap": torch.sigmoid(dense.heatmap), "wh": model.size(dense.features)}
    ours["offset"] = cast(nn.Module, model.offset)(dense.features)
    for key, value in ours.items():
        error = np.abs(value.numpy() - golden[key]).max() / np.abs(golden[key]).max()
        print(name, key, f"{error:.1e}")
        assert error <= 1e-4, f"{key}: {error}"
    found = model.deploy(images, 0.0)
    assert int(found.count[0]) > 10
    assert_same_boxes(found, *(torch.from_numpy(golden[key]) for key in ("boxes", "scores", "labels")))


def test_offsets_matter_in_these_tests(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    peer = published.randomise(published.CenterNetResNet(18, True, CLASSES), images)
    with torch.no_grad():
        before = peer(images)["hm"]
        offset = peer.deconv_layers[6].conv_offset_mask.weight
        # dy and dx of each tap exchanged: what a wrong layout of the 27 channels would do.
        offset[:18] = offset[:18].reshape(9, 2, *offset.shape[1:]).flip(1).reshape(18, *offset.shape[1:])
        after = peer(images)["hm"]
    assert float((before - after).abs().max() / before.abs().max()) > 1e-2


@pytest.fixture(scope="module")
def resdcn18(tmp_path_factory: pytest.TempPathFactory, images: torch.Tensor) -> Path:
    torch.manual_seed(18)
    peer = published.randomise(published.CenterNetResNet(18, True, 80), images)
    return write("centernet", peer.state_dict(), tmp_path_factory.mktemp("resdcn18") / "ctdet_coco_resdcn18.pth")


def test_the_command_line_and_what_the_checkpoint_knows(
    resdcn18: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out.pt"
    assert main(["convert", str(resdcn18), str(out)]) == 0
    said = capsys.readouterr().out
    assert "centernet, resnet18-dcn-none, 80 classes" in said
    assert "boxes only" in said
    checkpoint = load_checkpoint(out)
    config = checkpoint.config
    assert (config.class_names, config.category_ids) == (COCO_NAMES, COCO_IDS)
    assert (config.preprocess.policy, config.preprocess.color) == ("keep", "bgr")
    assert config.preprocess.mean[0] / 255 == pytest.approx(0.40789654)  # of blue
    assert (config.max_overlap, config.top_k, config.head_channels) == (1.0, 100, 64)
    assert checkpoint.info["converted_from"] == "centernet"
    fixed = convert(resdcn18, fixed_size=512).config.preprocess
    assert (fixed.policy, fixed.size) == ("fixed_index", 512)
    assert main(["convert", str(resdcn18), str(tmp_path / "x.pt"), "--fixed-size", "500"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("profile", ["fused", "standard", "decomposed"])
def test_the_exported_detector_finds_the_same_boxes(
    profile: Profile, resdcn18: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = convert(resdcn18).checkpoint.build()
    small = np.random.default_rng(5).normal(size=(1, 3, 96, 128)).astype(np.float32)
    monkeypatch.setattr(verify, "sample_inputs", lambda model, preprocess=None: [small])
    export(model, tmp_path / "detector.onnx", profile=profile)
    picture = np.random.default_rng(6).integers(0, 256, (90, 121, 3), dtype=np.uint8)
    in_torch = Predictor(TorchNetwork(model), score_threshold=0.05)(picture)
    in_onnx = Predictor(tmp_path / "detector.onnx", score_threshold=0.05, device="cpu")
    assert in_onnx.info.max_overlap == 1.0
    found = in_onnx(picture)
    assert len(found) == len(in_torch) > 10
    assert found.masks is None
    assert "boxes only" in repr(found)
    np.testing.assert_array_equal(found.labels, in_torch.labels)
    np.testing.assert_allclose(found.boxes, in_torch.boxes, atol=0.02)
    np.testing.assert_allclose(found.scores, in_torch.scores, atol=1e-4)


def test_pascal_models_are_prepared_in_their_own_way(tmp_path: Path) -> None:
    weights = published.CenterNetResNet(18, True, 20).state_dict()
    config = convert(write("centernet", weights, tmp_path / "voc.pth")).config
    assert config.class_names[-1] == "tvmonitor"
    assert (config.preprocess.policy, config.preprocess.size, config.preprocess.color) == ("fixed_index", 384, "bgr")
    assert config.preprocess.mean[0] / 255 == pytest.approx(0.485)


def test_names_of_mmcv_before_version_2(tmp_path: Path) -> None:
    weights = published.Mmdet(True, 80).state_dict()
    old = {re.sub(r"\.conv\.conv_offset\.", ".conv_offset.", key): value for key, value in weights.items()}
    assert old.keys() != weights.keys()
    new, before = (convert(write("mmdet", w, tmp_path / "m.pth")).checkpoint.model for w in (weights, old))
    assert all(torch.equal(new[key], before[key]) for key in new)
    assert float(new["neck.stages.0.conv.bias"].abs().max()) == 0  # mmdetection's has none


def test_files_of_old_torch(resdcn18: Path, tmp_path: Path) -> None:
    values = torch.load(resdcn18, weights_only=True)
    state = {k: v for k, v in values["state_dict"].items() if not k.endswith("num_batches_tracked")}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    new, old = (convert(path).checkpoint.model for path in (resdcn18, tmp_path / "old.pth"))
    assert all(torch.equal(new[key], old[key]) for key in new if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_depths(depth: int) -> None:
    with torch.device("meta"):
        weights = published.RESNETS[depth]().state_dict()
    assert resnet_depth(weights, "layer{}.") == depth


def test_classes() -> None:
    assert len(COCO_NAMES) == len(COCO_IDS) == len(set(COCO_NAMES)) == 80
    assert dict(zip(COCO_NAMES, COCO_IDS, strict=True))["toothbrush"] == 90
    assert COCO_IDS[11] == 13  # stop sign; 12 was never used
    assert classes_for(20)[0][0] == "aeroplane"
    assert classes_for(2, ("x", "y")) == (("x", "y"), (1, 2))
    with pytest.raises(ValueError, match="has 3 classes, --classes names 2"):
        classes_for(3, ("x", "y"))
    with pytest.raises(ValueError, match="name them by --classes"):
        classes_for(7)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "was_here"
    torch.save({"state_dict": {"hm.2.weight": torch.zeros(1)}, "opt": Harm(str(trace))}, tmp_path / "harm.pth")
    with pytest.raises(ConvertError, match=r"refused: .*system.* can run any code.*torch\.save"):
        convert(tmp_path / "harm.pth")
    assert not trace.exists()


def test_refusals(resdcn18: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = torch.load(resdcn18, weights_only=True)["state_dict"]

    def refused(match: str, values: object, **settings: object) -> None:
        path = tmp_path / "bad.pth"
        if isinstance(values, bytes):
            path.write_bytes(values)
        else:
            torch.save(values, path)
        with pytest.raises(ValueError, match=match) as caught:
            convert(path, **settings)  # type: ignore[arg-type]
        assert "weights_only=False" not in str(caught.value)

    data = resdcn18.read_bytes()
    refused("empty", b"")
    refused("truncated, damaged, or not a file of PyTorch", data[: len(data) // 2])
    refused("truncated, damaged, or not a file of PyTorch", b"hello, this is text")
    refused("holds no weights .* it is a dictionary with epoch", {"epoch": 3})
    refused("holds no weights .* it is list", [1, 2])
    refused("is of none of the families centernet, mmdet, centernet-better", {"fc.weight": torch.zeros(2)})
    refused("looks like centernet, not like mmdet", {"state_dict": good}, family="mmdet")
    refused("family must be one of", {"state_dict": good}, family="yolo")
    refused("a CenterNet of the task multi_pose", {**good, "hps.0.weight": torch.zeros(2)})
    refused("Hourglass", {**good, "pre.0.conv.weight": torch.zeros(2)})
    refused("head_conv 0", {"hm.weight": torch.zeros(80, 64, 1, 1)})
    refused("another detector of mmdetection", {"bbox_head.fc_cls.weight": torch.zeros(2)})
    refused("cat_spec_wh", {**good, "module.wh.2.weight": torch.zeros(160, 64, 1, 1)})
    refused(r"not known \(1\): surplus\.weight", {**good, "surplus.weight": torch.zeros(2)})
    lacking = {k: v for k, v in good.items() if not k.endswith(("hm.2.bias", "bn1.running_var"))}
    refused(r"not in the file \(\d+\): .*bn1\.running_var.*heatmap\.out\.bias", lacking)
    refused(
        r"of another shape \(1\): heatmap\.out\.bias: \[80\] wanted, got \[79\]",
        {**good, "module.hm.2.bias": torch.zeros(79)},
    )
    refused("not finite: heatmap.out.bias", {**good, "module.hm.2.bias": torch.full((80,), float("nan"))})
    refused("no ResNet that is known", {k: v for k, v in good.items() if "layer2.1" not in k})
    torch.save({"format": "centermask-checkpoint", "model": {}}, tmp_path / "ours.pt")
    assert main(["convert", str(tmp_path / "ours.pt"), str(tmp_path / "out.pt")]) == 2
    assert "already a centermask checkpoint" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.pt"), str(tmp_path / "out.pt")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def test_configurations_of_older_checkpoints_still_read() -> None:
    values = ModelConfig.from_name("lite0-dcn-dynamic", class_names=("a",), category_ids=(1,)).to_dict()
    for name in ("offset_head", "max_overlap"):
        del values[name]
    config = ModelConfig.from_dict(values)
    assert (config.offset_head, config.max_overlap) == (True, 0.65)
    assert collections.Counter(config.neck_channels) == {128: 1, 96: 1, 64: 1}
