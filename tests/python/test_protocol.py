"""Ways of testing that published figures were measured with: flip test, several scales, Soft-NMS, rounding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import tiny_model
import torch
from torch.nn import functional as F

from centermask.cli import main
from centermask.config import ModelConfig, PreprocessConfig
from centermask.metadata import ModelInfo
from centermask.nn.model import CenterMask
from centermask.predictor import Predictor
from centermask.session import NetworkOutput
from centermask.training.checkpoint import Checkpoint, save_checkpoint
from centermask.training.evaluate import _load
from centermask.training.protocol import EvalProtocol, ScaledPredictor, soft_nms, soft_nms_by_class


def tiny_detector() -> CenterMask:
    torch.manual_seed(3)
    config = ModelConfig(
        backbone="test_efficientnet", neck="conv", mask_head="none", class_names=("a", "b"), category_ids=(1, 2)
    )
    model = CenterMask(config).eval()
    with torch.no_grad():
        for head, std in ((model.heatmap, 100.0), (model.size, 30.0)):
            head.out.weight.normal_(std=std)
    return model


@torch.no_grad()
def test_flip_averages_scores_and_sizes_with_those_of_the_mirror_image() -> None:
    model = tiny_detector()
    images = torch.randn(2, 3, 64, 96)
    found = model.deploy(images, 0.0, flip=True)
    plain, mirror = model(images), model(images.flip(3))
    heat = (torch.sigmoid(plain.heatmap) + torch.sigmoid(mirror.heatmap.flip(3))) / 2
    size = (model.size(plain.features) + model.size(mirror.features).flip(3)) / 2
    offset = model.offset(plain.features)
    peak = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    for n in range(2):
        count = int(found.count[n])
        assert count > 5
        scores, place = peak[n].flatten().topk(count)
        y, x = place % (16 * 24) // 24, place % 24
        center = torch.stack([x, y]) + offset[n, :, y, x]
        half = size[n, :, y, x].clamp(min=0) / 2
        torch.testing.assert_close(found.scores[n, :count], scores, atol=1e-6, rtol=1e-5)
        expected = 4 * torch.cat([center - half, center + half]).T
        torch.testing.assert_close(found.boxes[n, :count], expected, atol=1e-3, rtol=1e-5)
    assert not torch.allclose(found.boxes, model.deploy(images, 0.0).boxes, atol=0.1)


def published_soft_nms(boxes: list[list[float]]) -> list[list[float]]:
    """Gaussian Soft-NMS on rows x0, y0, x1, y1, score, in loops (Bodla et al. 2017, figure 3): rows that stay."""
    left, kept = [list(row) for row in boxes], []
    while left:
        best = max(left, key=lambda row: row[4])
        left.remove(best)
        kept.append(best)
        for row in list(left):
            w = min(best[2], row[2]) - max(best[0], row[0]) + 1
            h = min(best[3], row[3]) - max(best[1], row[1]) + 1
            if w <= 0 or h <= 0:
                continue
            areas = [(r[2] - r[0] + 1) * (r[3] - r[1] + 1) for r in (best, row)]
            overlap = w * h / (sum(areas) - w * h)
            row[4] *= math.exp(-overlap * overlap / 0.5)
            if row[4] < 0.001:
                left.remove(row)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_soft_nms(count: int) -> None:
    generator = np.random.default_rng(count)
    corner = generator.uniform(0, 15, (count, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(1, 40, (count, 2))], 1)
    scores = generator.uniform(0.0011, 1, count).astype(np.float32)
    rows, values = soft_nms(boxes, scores)
    expected = published_soft_nms(np.concatenate([boxes, scores[:, None].astype(np.float64)], 1).tolist())
    assert len(rows) == len(expected)
    if count:
        np.testing.assert_allclose(boxes[rows], np.array(expected)[:, :4])
        np.testing.assert_allclose(values, np.array(expected)[:, 4], rtol=1e-6)
    if count == 40:
        assert len(rows) < 40  # some have fallen below the least score
        kept, _ = soft_nms_by_class(boxes, scores, np.arange(40) % 2)
        even, odd = (soft_nms(boxes[first::2], scores[first::2])[0] for first in (0, 1))
        assert kept.tolist() == [*(2 * even), *(2 * odd + 1)]


class Outline:
    """A network that finds one thing: the box around all that is not black."""

    def __init__(self, policy: str) -> None:
        preprocess = PreprocessConfig(size=96, policy=policy, mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]
        config = ModelConfig(
            mask_head="none", class_names=("thing",), category_ids=(5,), max_overlap=1.0, preprocess=preprocess
        )
        self.info = ModelInfo.from_config(config)
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> NetworkOutput:
        self.sizes.append(images.shape)
        y, x = np.nonzero(images[0].max(0) > 100)
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        boxes = np.array([[box, [0, 0, 0, 0]]], np.float32)
        return NetworkOutput(boxes, np.array([[0.9, 0]], np.float32), np.array([[0, -1]]), np.array([1]))


@pytest.mark.parametrize("policy", ["keep", "fit"])
def test_scales_agree_on_the_place_and_soft_nms_joins_them(policy: str) -> None:
    image = np.zeros((101, 75, 3), np.uint8)
    image[20:80, 30:70] = 255
    network: Any = Outline(policy)
    found = ScaledPredictor(network, scales=(0.5, 1.0, 2.0), score_threshold=0.0)(image)
    assert len(found) == 3
    np.testing.assert_allclose(found.boxes, [[30, 20, 70, 80]] * 3, atol=2)
    # IoU of about 1 with the first, then with both others.
    np.testing.assert_allclose(found.scores, [0.9, 0.9 * math.exp(-2), 0.9 * math.exp(-4)], atol=0.05)
    assert found.masks is None
    if policy == "keep":
        assert [size[2:] for size in network.sizes] == [(64, 64), (128, 96), (224, 160)]
    one = ScaledPredictor(network, scales=(2.0,), score_threshold=0.0)(image)
    assert one.scores.tolist() == [np.float32(0.9)]
    same = ScaledPredictor(network, scales=(1.0,), score_threshold=0.0)(image)
    np.testing.assert_array_equal(same.boxes, Predictor(network)(image).boxes)


def test_boxes_beyond_the_picture_stay_if_asked_for() -> None:
    image = np.full((40, 50, 3), 255, np.uint8)

    class Larger(Outline):
        def __call__(self, images: np.ndarray) -> NetworkOutput:
            output = super().__call__(images)
            output.boxes[0, 0] += [-3, -3, 3, 3]
            return output

    network: Any = Larger("keep")
    np.testing.assert_array_equal(Predictor(network)(image).boxes, [[0, 0, 50, 40]])
    np.testing.assert_array_equal(Predictor(network, clip_boxes=False)(image).boxes, [[-3, -3, 53, 43]])
    scaled = ScaledPredictor(network, scales=(1.0,), clip_boxes=False)(image)
    np.testing.assert_array_equal(scaled.boxes, [[-3, -3, 53, 43]])


def test_rounding() -> None:
    row = {"image_id": 1, "category_id": 2, "bbox": [1.234567, 2.3, -0.126, 4.0], "score": 0.98765}
    assert EvalProtocol().rounded(row) == row
    assert EvalProtocol(decimals=2).rounded(row) == {**row, "bbox": [1.23, 2.3, -0.13, 4.0], "score": 0.99}


def test_settings_reach_network_and_predictor(tmp_path: Path) -> None:
    model = tiny_detector()
    with torch.no_grad():
        model.heatmap.out.bias.fill_(-4)  # scores around 0.02
    path = tmp_path / "tiny.pt"
    save_checkpoint(path, Checkpoint(model.config, model.state_dict()))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    plain = _load(str(path), "cpu", 1, EvalProtocol())
    published = _load(str(path), "cpu", 1, EvalProtocol(published=True))
    assert published(image).scores.min() < 0.05
    assert len(plain(image)) < len(published(image)) == 100
    assert (plain(image).scores >= 0.05).all()
    assert (published.max_overlap, published.clip_boxes, plain.clip_boxes) == (1.0, False, True)
    flipped = _load(str(path), "cpu", 1, EvalProtocol(flip=True, published=True))
    assert not np.array_equal(flipped(image).scores, published(image).scores)
    assert isinstance(_load(str(path), "cpu", 1, EvalProtocol(scales=(1.0, 1.5))), ScaledPredictor)


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny_model.write(tmp_path / "tiny.onnx"))
    (tmp_path / "val.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}]}')
    for options, message in (
        (["--flip"], "the flip test needs a checkpoint"),
        (["--scales", "0.5,1"], "boxes only"),
        (["--scales", "9"], r"scales must be in 0.1..4"),
        (["--decimals", "-1"], "decimals must be in 0..9"),
    ):
        assert main(["eval", model, str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err
    network: Any = Outline("fixed")
    with pytest.raises(ValueError, match="size policy must be keep or fit, got fixed"):
        ScaledPredictor(network, scales=(1.0, 2.0))
