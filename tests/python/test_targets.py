"""Training targets against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask.training import targets
from centermask.training.targets import center_cells, gaussian_radius, heatmap_targets, jitter_boxes, sample_positives


def radius_of(width, height, rule):
    return float(gaussian_radius(*torch.tensor([[width], [height]], dtype=torch.float64), rule))


def random_boxes(rng, count, height, width):
    center = rng.uniform(0, 1, (count, 2)) * (width, height)
    half = rng.uniform(0.1, 12, (count, 2))
    return torch.tensor(np.concatenate([center - half, center + half], 1), dtype=torch.float32)


# ---- radius ----


@pytest.mark.parametrize(("rule", "expected"), [("cornernet", 8.75), ("iou0.3", 7.24)])
def test_radius_of_a_square_of_32_cells(rule, expected):
    """The published values, to the two digits in which they are published."""
    assert round(radius_of(32.0, 32.0, rule), 2) == expected


@settings(max_examples=50, deadline=None)
@given(st.floats(1, 200), st.floats(1, 200))
def test_corrected_radius_is_where_the_worst_box_has_the_overlap(width, height):
    """At radius r the worst of the three corner shifts has IoU 0.3, and none has less."""
    r = radius_of(width, height, "iou0.3")
    area = width * height
    one_in_one_out = (width - r) * (height - r) / (2 * area - (width - r) * (height - r))
    inside = (width - 2 * r) * (height - 2 * r) / area if min(width, height) > 2 * r else 1.0
    outside = area / ((width + 2 * r) * (height + 2 * r))
    # The radius is float64; the formula divides sums of products of 200.
    assert min(one_in_one_out, inside, outside) == pytest.approx(0.3, abs=1e-9)


def test_radius_is_symmetric_and_grows():
    for rule in ("cornernet", "iou0.3"):
        assert radius_of(10.0, 40.0, rule) == pytest.approx(radius_of(40.0, 10.0, rule), rel=1e-12)
        assert radius_of(5.0, 5.0, rule) < radius_of(6.0, 6.0, rule) < radius_of(6.0, 7.0, rule)


# ---- heatmap ----


def loop_heatmap(boxes, labels, owners, shape, rule):
    heatmap = np.zeros(shape)
    for (x0, y0, x1, y1), label, owner in zip(boxes.tolist(), labels, owners, strict=True):
        cx = min(max(math.floor((x0 + x1) / 2), 0), shape[3] - 1)
        cy = min(max(math.floor((y0 + y1) / 2), 0), shape[2] - 1)
        radius = math.floor(radius_of(float(math.ceil(x1 - x0)), float(math.ceil(y1 - y0)), rule))
        sigma = (2 * radius + 1) / 6
        for y in range(max(0, cy - radius), min(shape[2], cy + radius + 1)):
            for x in range(max(0, cx - radius), min(shape[3], cx + radius + 1)):
                value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
                heatmap[owner, label, y, x] = max(heatmap[owner, label, y, x], value)
    return heatmap


@pytest.mark.parametrize("rule", ["cornernet", "iou0.3"])
def test_heatmap_against_loops(rule, monkeypatch):
    monkeypatch.setattr(targets, "CHUNK", 7)  # several chunks
    rng = np.random.default_rng(0)
    shape = (2, 3, 20, 28)
    boxes = random_boxes(rng, 25, 20, 28)
    labels, owners = rng.integers(3, size=25), rng.integers(2, size=25)
    found = heatmap_targets(boxes, torch.tensor(labels), torch.tensor(owners), shape, rule)
    # float32 exponentials of exact squares: a few roundings of values up to 1.
    np.testing.assert_allclose(found.numpy(), loop_heatmap(boxes, labels, owners, shape, rule), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    x, y = center_cells(boxes, 20, 28)
    assert (found[owners, labels, y, x] == 1).all()  # exactly: the loss asks for equality


def test_overlapping_objects_keep_the_larger_value():
    boxes = torch.tensor([[2.0, 2, 18, 18], [6.0, 2, 22, 18]])
    labels, owners = torch.tensor([0, 0]), torch.tensor([0, 0])
    both = heatmap_targets(boxes, labels, owners, (1, 1, 20, 24))
    alone = [heatmap_targets(boxes[i : i + 1], labels[:1], owners[:1], (1, 1, 20, 24)) for i in range(2)]
    assert torch.equal(both, torch.maximum(*alone))
    assert not torch.equal(both, alone[0])
    assert int((both == 1).sum()) == 2


def test_objects_of_other_classes_and_pictures_do_not_meet():
    boxes = torch.tensor([[2.0, 2, 18, 18]]).expand(2, -1)
    found = heatmap_targets(boxes, torch.tensor([0, 1]), torch.tensor([1, 0]), (2, 2, 20, 24))
    assert found[0, 0].sum() == found[1, 1].sum() == 0
    assert torch.equal(found[0, 1], found[1, 0])


def test_centre_outside_the_map_goes_to_its_edge():
    boxes = torch.tensor([[-9.0, -9, -1, -1], [8.0, 4, 10, 6]])
    x, y = center_cells(boxes, 5, 9)
    assert (x.tolist(), y.tolist()) == ([0, 8], [0, 4])
    assert heatmap_targets(boxes, torch.tensor([0, 0]), torch.tensor([0, 0]), (1, 1, 5, 9))[0, 0, 4, 8] == 1


def test_semantic_targets_against_loops(monkeypatch):
    monkeypatch.setattr(targets, "CHUNK", 3)
    rng = np.random.default_rng(2)
    masks = rng.integers(0, 256, (8, 4, 5), dtype=np.uint8)
    labels, owners = rng.integers(0, 3, 8), np.sort(rng.integers(0, 2, 8))
    expected = np.zeros((2, 3, 4, 5))
    for mask, label, owner in zip(masks, labels, owners, strict=True):
        for y in range(4):
            for x in range(5):
                expected[owner, label, y, x] = max(expected[owner, label, y, x], mask[y, x] / 255)
    found = targets.semantic_targets(*map(torch.from_numpy, (masks, labels, owners)), (2, 3, 4, 5))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-7)  # float32 of shares


def test_nothing_to_find():
    none, empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    heatmap = heatmap_targets(empty, none, none, (2, 3, 4, 5))
    assert heatmap.shape == (2, 3, 4, 5)
    assert heatmap.sum() == 0
    cells = sample_positives(empty, none, 4, 5, 6)
    assert [t.shape for t in cells] == [(0,)] * 4
    assert jitter_boxes(empty, 0.1).shape == (0, 4)


# ---- positives ----


def test_positives_start_at_the_centre_and_stay_in_the_map():
    rng = np.random.default_rng(1)
    boxes = random_boxes(rng, 9, 12, 16)
    owners = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3])
    cells = sample_positives(boxes, owners, 12, 16, 5, torch.Generator().manual_seed(0))
    assert cells.instance.tolist() == np.repeat(np.arange(9), 5).tolist()
    assert torch.equal(cells.batch_index, owners[cells.instance])
    x, y = center_cells(boxes, 12, 16)
    assert torch.equal(cells.x[::5], x)
    assert torch.equal(cells.y[::5], y)
    assert 0 <= int(cells.x.min()) <= int(cells.x.max()) < 16
    assert 0 <= int(cells.y.min()) <= int(cells.y.max()) < 12
    again = sample_positives(boxes, owners, 12, 16, 5, torch.Generator().manual_seed(0))
    other = sample_positives(boxes, owners, 12, 16, 5, torch.Generator().manual_seed(1))
    assert torch.equal(cells.x, again.x)
    assert not torch.equal(cells.x, other.x)


def test_positives_spread_as_ttfnets_gaussian():
    """Standard deviation 0.09 of the side along each axis, plus the rounding to cells (variance 1/12)."""
    boxes = torch.tensor([[100.0, 100, 200, 150]])
    owner = torch.zeros(1, dtype=torch.int64)
    cells = sample_positives(boxes, owner, 250, 300, 20001, torch.Generator().manual_seed(0))
    for found, center, side in ((cells.x, 150, 100), (cells.y, 125, 50)):
        spread = math.sqrt((0.09 * side) ** 2 + 1 / 12)
        values = found[1:].double()
        # Errors of the mean and of the deviation of 20000 draws: 0.7 % and 0.5 % of the spread; five times that.
        assert abs(float(values.mean()) - center) < 0.035 * spread
        assert float(values.std()) == pytest.approx(spread, rel=0.025)


def test_jitter():
    boxes = torch.tensor([[10.0, 20, 30, 60]]).expand(20000, -1)
    assert jitter_boxes(boxes, 0) is boxes
    moved = jitter_boxes(boxes, 0.1, torch.Generator().manual_seed(0)).double()
    size = moved[:, 2:] - moved[:, :2]
    center = (moved[:, :2] + moved[:, 2:]) / 2
    # 20000 draws: the mean of a deviation d is good to d / 141, the deviation to 0.5 %; five times that.
    np.testing.assert_allclose(center.mean(0), [20, 40], atol=0.036 * 4)
    np.testing.assert_allclose(center.std(0), [2, 4], rtol=0.025)
    np.testing.assert_allclose(torch.log(size / torch.tensor([20, 40])).std(0), [0.1, 0.1], rtol=0.025)
    wild = jitter_boxes(boxes, 5.0, torch.Generator().manual_seed(0))
    side = (wild[:, 2] - wild[:, 0]).double()
    assert 10 - 1e-3 <= float(side.min()) < 11  # never below half or above twice the side
    assert 39 < float(side.max()) <= 40 + 1e-3
