"""Losses against float64 formulas written as plain loops."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import torch

from centermask.training.losses import binary_focal_loss, box_region, dice_loss, focal_loss, giou_loss
from centermask.training.objective import heatmap_weights

# ---- focal ----


def loop_focal(logits, target, weight, alpha=2.0, beta=4.0):
    total = 0.0
    for logit, aim, share in zip(logits.ravel(), target.ravel(), weight.ravel(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        if aim == 1:
            total -= share * (1 - p) ** alpha * math.log(p)
        else:
            total -= share * (1 - aim) ** beta * p**alpha * math.log(1 - p)
    return total


def test_focal_against_loops():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 3, 4, 5))
    target = rng.uniform(0, 1, logits.shape)
    target[0, 1, 2, 3] = target[1, 0, 0, 0] = 1
    weight = rng.integers(0, 2, logits.shape).astype(float)
    found = focal_loss(torch.tensor(logits), torch.tensor(target), torch.tensor(weight))
    assert float(found) == pytest.approx(loop_focal(logits, target, weight), rel=1e-12)
    whole = focal_loss(torch.tensor(logits), torch.tensor(target), alpha=1.0, beta=2.0)
    assert float(whole) == pytest.approx(loop_focal(logits, target, np.ones_like(logits), 1.0, 2.0), rel=1e-12)


def test_binary_focal_against_loops():
    rng = np.random.default_rng(1)
    logits, target = rng.normal(0, 3, (2, 3, 4, 5)), rng.uniform(0, 1, (2, 3, 4, 5))
    weight = rng.integers(0, 2, logits.shape).astype(float)
    expected = 0.0
    for logit, aim, share in zip(logits.ravel(), target.ravel(), weight.ravel(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        covered = 0.25 * aim * (1 - p) ** 2 * math.log(p)
        expected -= share * (covered + 0.75 * (1 - aim) * p**2 * math.log(1 - p))
    found = binary_focal_loss(torch.tensor(logits), torch.tensor(target), torch.tensor(weight))
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("aim", [0.0, 0.5, 1.0])
def test_focal_and_its_gradient_stay_finite(logit, aim, dtype):
    """A prediction of exactly 1 at a wrong place gave log(0) * 0 = NaN where p was clamped from below only."""
    leaf = torch.full((1, 1, 1, 1), logit, dtype=dtype, requires_grad=True)
    loss = focal_loss(leaf, torch.full((1, 1, 1, 1), aim, dtype=dtype))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(leaf.grad.isfinite().all())
    wrong = logit > 0 if aim < 1 else logit < 0
    if abs(logit) >= 100:  # far out the loss is linear where wrong, and nothing where right
        share = (1 - aim) ** 4 if aim < 1 else 1.0
        assert float(loss) == pytest.approx(abs(logit) * share if wrong else 0.0, rel=1e-6)
        assert float(leaf.grad.abs()) == pytest.approx(share if wrong else 0.0, rel=1e-6)


def test_focal_gradient():
    torch.manual_seed(0)
    target = torch.rand(1, 2, 3, 3, dtype=torch.float64)
    target[0, 0, 1, 1] = 1
    logits = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target), logits)


# ---- weights of the heatmap ----


def test_heatmap_weights():
    """Unknown classes count nowhere; ignore regions count nowhere but at the objects' own centres."""
    target = torch.zeros(2, 3, 4, 4)
    target[0, 1, 2, 2] = 1
    target[0, 1, 2, 1] = 0.9
    ignore = torch.zeros(2, 4, 4, dtype=torch.uint8)
    ignore[0, 2:] = 255  # crowd of class 1 in picture 0, over the object's centre
    ignore[1, 0, 0] = 1  # any share counts
    batch = SimpleNamespace(
        known_classes=torch.tensor([[True, True, False], [False, True, True]]),
        ignore=ignore,
        ignore_labels=torch.tensor([1, 2]),
        ignore_batch_index=torch.tensor([0, 1]),
    )
    expected = np.ones((2, 3, 4, 4))
    expected[0, 2] = expected[1, 0] = 0
    expected[0, 1, 2:] = 0
    expected[0, 1, 2, 2] = 1
    expected[1, 2, 0, 0] = 0
    np.testing.assert_array_equal(heatmap_weights(batch, target).numpy(), expected)
    batch.ignore = ignore[:0]
    batch.ignore_labels = batch.ignore_batch_index = torch.zeros(0, dtype=torch.int64)
    plain = np.broadcast_to(batch.known_classes.numpy()[:, :, None, None], expected.shape)
    np.testing.assert_array_equal(heatmap_weights(batch, target).numpy(), plain)


def test_an_object_of_one_class_is_of_no_other_where_that_is_asked_for():
    """By plain loops: an unlabelled class counts as much as the strongest of the picture's objects covers the cell."""
    target = torch.zeros(2, 3, 2, 3)
    target[0, 0] = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.0, 0.0]])
    target[0, 1, 0, 1] = 0.75
    known = torch.tensor([[True, True, False], [True, False, False]])
    none = torch.zeros(0, dtype=torch.int64)
    batch = SimpleNamespace(
        known_classes=known, ignore=torch.zeros(0, 2, 3, dtype=torch.uint8), ignore_labels=none, ignore_batch_index=none
    )
    weight = heatmap_weights(batch, target, one_class=True)
    for n, c, y, x in np.ndindex(2, 3, 2, 3):
        strongest = max(float(target[n, other, y, x]) for other in range(3))
        assert weight[n, c, y, x] == (1.0 if known[n, c] else strongest)
    assert weight[0, 2].tolist() == [[1.0, 0.75, 0.0], [pytest.approx(0.2), 0.0, 0.0]]
    assert weight[1, 1:].sum() == 0


def test_two_ignore_regions_of_one_class_join():
    ignore = torch.zeros(2, 2, 2, dtype=torch.uint8)
    ignore[0, 0, 0] = ignore[1, 1, 1] = 200
    batch = SimpleNamespace(
        known_classes=torch.ones(1, 1, dtype=torch.bool),
        ignore=ignore,
        ignore_labels=torch.tensor([0, 0]),
        ignore_batch_index=torch.tensor([0, 0]),
    )
    assert heatmap_weights(batch, torch.zeros(1, 1, 2, 2)).flatten().tolist() == [0, 1, 1, 0]


# ---- boxes ----


def loop_giou(a, b):
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(area) - inner
    outer = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inner / union - (outer - union) / outer


def test_giou_against_loops():
    rng = np.random.default_rng(0)
    corners = rng.uniform(-10, 10, (2, 60, 2, 2))
    boxes = np.concatenate([corners.min(2), corners.max(2)], 2)
    boxes[1, :20] = boxes[0, :20] + rng.normal(0, 0.5, (20, 4))  # near ones, and below one inside the other
    boxes[1, 20:30] = boxes[0, 20:30] + [0.01, 0.01, -0.01, -0.01]
    found = giou_loss(torch.tensor(boxes[0]), torch.tensor(boxes[1]))
    assert found.shape == (60,)
    for value, a, b in zip(found.tolist(), *boxes.tolist(), strict=True):
        assert value == pytest.approx(1 - loop_giou(a, b), rel=1e-9)


def test_giou_special_cases():
    box = torch.tensor([[1.0, 2, 5, 8]])
    assert float(giou_loss(box, box)) == 0
    far = giou_loss(box, torch.tensor([[1e6, 1e6, 1e6 + 4, 1e6 + 6]]))
    assert float(far) == pytest.approx(2, abs=1e-4)
    point = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    loss = giou_loss(point, torch.tensor([[3.0, 3, 3, 3]]))
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(point.grad.isfinite().all())
    assert giou_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


# ---- masks ----


def test_dice_is_of_each_instance():
    rng = np.random.default_rng(0)
    p, g = rng.uniform(0, 1, (2, 3, 4, 5))
    g[2] = 0
    weight = rng.integers(0, 2, p.shape).astype(float)
    found = dice_loss(torch.tensor(p), torch.tensor(g), torch.tensor(weight))
    assert found.shape == (3,)
    for i in range(3):
        both = squares = 0.0
        for a, b, w in zip(p[i].ravel(), g[i].ravel(), weight[i].ravel(), strict=True):
            both += a * b * w
            squares += (a * a + b * b) * w
        assert float(found[i]) == pytest.approx(1 - (2 * both + 1e-5) / (squares + 1e-5), rel=1e-12)
    swapped = dice_loss(torch.tensor(p[::-1].copy()), torch.tensor(g[::-1].copy()), torch.tensor(weight[::-1].copy()))
    assert torch.equal(swapped, found.flip(0))


def test_dice_extremes():
    ones, zeros = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    assert float(dice_loss(ones, ones)) == 0
    assert float(dice_loss(zeros, zeros)) == 0
    assert float(dice_loss(ones, zeros)) == pytest.approx(1, abs=1e-6)
    nowhere = dice_loss(ones.clone().requires_grad_(), zeros, zeros)
    assert float(nowhere) == 0


def test_box_region_against_loops():
    boxes = torch.tensor([[1.0, 2, 5, 4], [-3.0, 0.5, 0.5, 20], [2.5, 2.5, 2.5, 2.5]])
    found = box_region(boxes, 0.25, 6, 8)
    for box, region in zip(boxes.tolist(), found.tolist(), strict=True):
        grow_x, grow_y = 0.25 * (box[2] - box[0]), 0.25 * (box[3] - box[1])
        for i in range(6):
            for j in range(8):
                inside_x = box[0] - grow_x <= j + 0.5 < box[2] + grow_x
                inside_y = box[1] - grow_y <= i + 0.5 < box[3] + grow_y
                assert region[i][j] == float(inside_x and inside_y)
    assert found[0].sum() == 6 * 3  # x 0.5 ... 5.5, y 1.5 ... 3.5: the lower edge 1.5 counts, the upper 4.5 not
