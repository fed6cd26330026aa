"""Mosaic and copy-paste: the masks still lie where the picture shows the objects."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from centermask.training.augment import TrainTransform
from centermask.training.coco_masks import ring_area
from centermask.training.coco_reader import Annotation, ImageRecord
from centermask.training.data import CocoDataset
from centermask.training.loader import SampleKey, TrainDataset
from centermask.training.mixing import MixOptions, copy_paste
from centermask.training.raster import fill_rings

SIZE = 128
QUIET = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "lighting": 0.0}


def painted(key, source=0, count=3, size=(100, 80)):
    """A record with discs, and its picture: disc k of label k has the colour 60 + 60 k on black."""
    width, height = size
    rng = np.random.default_rng(key)
    image = np.zeros((height, width, 3), np.uint8)
    items = []
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for label in range(count):
        # Each in a third of the picture, apart from the others: then one colour is one object.
        middle = np.array([width * (label + 0.5) / 3, rng.uniform(20, height - 20)])
        ring = middle + rng.uniform(8, 14) * np.stack([np.cos(angles), np.sin(angles)], 1)
        image[fill_rings([ring], (0, 0, width, height)) > 0] = 60 + 60 * label
        low, high = ring.min(0), ring.max(0)
        box = (*low.tolist(), *(high - low).tolist())
        items.append(Annotation(label, False, box, ring_area(ring), (ring,), None, None, label))
    known = np.ones(3, bool)
    return ImageRecord(Path(f"{key}.png"), width, height, key, True, source, tuple(items), known), image


def dataset_of(pairs):
    data = CocoDataset([r for r, _ in pairs], ("a", "b", "c"), (1, 2, 3), ("one", "two"))
    data._images.update({i: image for i, (_, image) in enumerate(pairs)})
    return data


def check_masks_lie_on_their_colours(sample):
    """All objects of a label share one colour: their masks together must be where the picture shows it."""
    every = np.concatenate([sample.masks, sample.ignore])
    labels = np.concatenate([sample.labels, sample.ignore_labels])
    for label in range(3):
        shown = np.abs(sample.image[..., 0].astype(int) - (60 + 60 * label)) <= 4
        inner = cv2.erode(shown.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1)
        cells_inner = inner.reshape(SIZE // 4, 4, SIZE // 4, 4).min(axis=(1, 3)) > 0
        near = cv2.dilate(shown.astype(np.uint8), np.ones((7, 7), np.uint8))
        cells_near = near.reshape(SIZE // 4, 4, SIZE // 4, 4).max(axis=(1, 3)) > 0
        union = every[labels == label].max(axis=0, initial=0)
        assert (union[cells_inner] == 255).all(), "what is plainly of this colour is plainly in a mask"
        # Thin remains at a border or under a pasted object show nothing but the blurred rim: whole ones are ignored,
        # and a few pixels may belong to an object that is kept.
        kept = sample.masks[sample.labels == label].max(axis=0, initial=0)
        assert kept[~cells_near].sum() <= 8 / 16 * 255, "and no mask lies where the colour is nowhere near"


@pytest.mark.parametrize("options", [MixOptions(mosaic=1), MixOptions(copy_paste=1), MixOptions(1, 0.5, 1, 1.0)])
def test_masks_follow_the_mixed_pictures(options):
    data = dataset_of([painted(i) for i in range(6)])
    transform = TrainTransform(SIZE, (0.7, 1.1), **QUIET)
    samples = TrainDataset(data, transform, 0, options)
    more_than_one = 0
    for position in range(30):
        sample = samples[SampleKey(position % 6, 0, position)]
        assert sample.image.shape == (SIZE, SIZE, 3)
        assert sample.image_id == position % 6
        check_masks_lie_on_their_colours(sample)
        # Nothing lies over itself: an object that is covered loses those pixels. Cells on an outline are shared.
        assert np.concatenate([sample.masks, sample.ignore]).astype(int).sum(0).max(initial=0) <= 255 + 16 * 2
        more_than_one += len(sample.labels) + len(sample.ignore_labels) > 3
    assert more_than_one > 10


def test_partners_come_from_the_same_set_and_chance_is_repeatable():
    data = dataset_of([painted(0, 0, 1), painted(1, 0, 1), painted(2, 1, 3), painted(3, 1, 3)])
    samples = TrainDataset(data, TrainTransform(SIZE, **QUIET), 5, MixOptions(mosaic=0.5, copy_paste=0.5))
    for position in range(20):
        first, second = (samples[SampleKey(0, 1, position)] for _ in range(2))
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.masks, second.masks)
        assert set(first.labels) <= {0}, "the other set's objects have labels 1 and 2 as well"


def test_no_mixing_is_the_plain_transform():
    data = dataset_of([painted(0), painted(1)])
    transform = TrainTransform(SIZE)
    plain = TrainDataset(data, transform, 5)[SampleKey(1, 0, 4)]
    direct = transform(data.records[1], data.image(1), np.random.default_rng((5, 0, 4)))
    np.testing.assert_array_equal(plain.image, direct.image)
    np.testing.assert_array_equal(plain.masks, direct.masks)


def test_pasting_covers_what_lies_below():
    record, image = painted(0, count=1)
    transform = TrainTransform.plain(SIZE)
    matrix = transform.draw_matrix(record.width, record.height, np.random.default_rng(0))
    warped, placed = transform.render(record, image, matrix, (0, 0, SIZE, SIZE), np.random.default_rng(0))
    pasted = copy_paste(transform, warped, placed, (record, image), 1.0, np.random.default_rng(0))
    assert len(pasted) == 1, "the same object at the same place covers the first wholly"
    np.testing.assert_array_equal(pasted[0].mask, placed[0].mask)
    none = copy_paste(transform, warped.copy(), placed, (record, image), 0.0, np.random.default_rng(0))
    assert none == placed


@pytest.mark.parametrize("changes", [{"mosaic": 1.5}, {"copy_paste": -1}, {"mosaic_zoom": 0}, {"paste_share": 2}])
def test_options_out_of_range_are_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"MixOptions: {name} must"):
        MixOptions(**changes)
