"""Masks, boxes and pictures follow one affine map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from centermask.training.augment import TrainTransform
from centermask.training.coco_reader import Annotation, ImageRecord


def polygon(label, *rings, ignore=False):
    rings = tuple(np.array(r, dtype=np.float64) for r in rings)
    points = np.concatenate(rings)
    low, high = points.min(0), points.max(0)
    box = (*low.tolist(), *(high - low).tolist())
    return Annotation(label, ignore, box, box[2] * box[3], rings, None, None, 1)


def record(width, height, *annotations):
    return ImageRecord(Path("none.png"), width, height, 1, True, 0, annotations, np.ones(3, dtype=bool))


def test_a_rectangle_under_the_plain_transform_is_known_in_closed_form():
    # 128 x 64 in 64 x 64: scale 1/2, and a quarter of the height above and below.
    item = record(128, 64, polygon(2, [(16, 8), (48, 8), (48, 40), (16, 40)]))
    image = np.full((64, 128, 3), 200, np.uint8)
    sample = TrainTransform.plain(64)(item, image, np.random.default_rng(0))
    np.testing.assert_allclose(sample.boxes, [[8, 20, 24, 36]], atol=1e-6)
    np.testing.assert_array_equal(sample.labels, [2])
    expected = np.zeros((16, 16), np.uint8)
    expected[5:9, 2:6] = 255
    np.testing.assert_array_equal(sample.masks[0], expected)
    assert (sample.image[16:48] == 200).all()
    assert (sample.image[:16] == 0).all()
    assert (sample.image[48:] == 0).all()
