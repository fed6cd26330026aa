"""Batches depend on the seed, the epoch and the position alone."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

import torch
from coco_folders import annotation, coco_folder

from centermask.training.augment import TrainTransform
from centermask.training.data import load_datasets
from centermask.training.loader import EpochSampler, SampleKey, TrainBatch, collate, empty_sample, make_loader


@pytest.fixture
def data(tmp_path):
    rows = [annotation(10 * i + k, i, 1 + (i + k) % 2) for i in range(1, 7) for k in range(i % 3)]
    rows.append(annotation(99, 2, iscrowd=1))
    data = load_datasets([coco_folder(tmp_path / "a", 7, rows)], "train")
    for i in range(7):
        noise = np.random.default_rng(i).integers(0, 255, (32, 40, 3), np.uint8)
        data._images[i] = noise  # pictures that differ, so that batches do
    return data


def same(first, second):
    return all(torch.equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(TrainBatch))


def epoch_of(data, epoch, start=0, **changes):
    loader, sampler = make_loader(data, TrainTransform(64), **{"batch_size": 2, "seed": 3, **changes})
    sampler.set_epoch(epoch, start)
    return list(loader)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(data, workers):
    alone, many = epoch_of(data, 1), epoch_of(data, 1, workers=workers)
    assert len(alone) == len(many) == 4
    assert all(same(a, b) for a, b in zip(alone, many, strict=True))


def test_resuming_inside_an_epoch_gives_the_rest_of_it(data):
    whole = epoch_of(data, 2)
    rest = epoch_of(data, 2, start=2 * 2)
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_epochs_and_seeds_differ_and_repeat(data):
    assert same(epoch_of(data, 0)[0], epoch_of(data, 0)[0])
    assert not torch.equal(epoch_of(data, 0)[0].image, epoch_of(data, 1)[0].image)
    assert not torch.equal(epoch_of(data, 0)[0].image, epoch_of(data, 0, seed=4)[0].image)


def test_a_picture_that_is_shown_again_looks_different(data):
    dataset = make_loader(data, TrainTransform(64), batch_size=2, seed=0)[0].dataset
    first, later, again = (dataset[SampleKey(3, 0, position)] for position in (1, 5, 1))
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, later.image)


def test_persistent_workers_follow_the_epoch(data):
    loader, sampler = make_loader(data, TrainTransform(64), batch_size=2, seed=3, workers=1)
    for epoch, start in ((0, 0), (1, 4), (0, 0)):
        sampler.set_epoch(epoch, start)
        expected = epoch_of(data, epoch, start)
        assert all(same(a, b) for a, b in zip(loader, expected, strict=True))


def test_processes_share_an_epoch_without_overlap(data):
    alone = EpochSampler(7, seed=3, multiple=4)
    parts = [EpochSampler(7, seed=3, multiple=4, rank=r, world_size=2) for r in range(2)]
    assert sorted(k for part in parts for k in part) == sorted(alone)
    assert [len(p) for p in parts] == [4, 4]
    parts[1].set_epoch(0, start=3)
    assert list(parts[1]) == [list(alone)[7]]
    with pytest.raises(ValueError, match="multiple must be one of world_size=2, got 3"):
        EpochSampler(7, seed=0, multiple=3, world_size=2)


def test_every_picture_once_and_the_epoch_filled_up():
    for epoch in range(5):
        plan = EpochSampler(10, seed=1, multiple=4).plan(epoch)
        assert len(plan) == 12
        assert sorted(plan[:10]) == list(range(10))
        np.testing.assert_array_equal(plan[10:], plan[:2])
    assert len(EpochSampler(3, seed=0, multiple=8).plan(0)) == 8, "fewer pictures than a batch"


def test_factors_are_met_on_average_and_nearly_so_in_each_epoch():
    factors = np.array([1.0, 0.25, 2.6, 1.0, 0.0, 3.15])
    sampler = EpochSampler(factors, seed=0)
    assert len(sampler) == 8
    counts = np.array([np.bincount(sampler.plan(e), minlength=6) for e in range(2000)])
    assert (counts.sum(1) == 8).all()
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    # A count is floor or ceil of its factor: standard deviation at most 0.5, 0.011 for the mean of 2000 epochs.
    np.testing.assert_allclose(counts.mean(0), factors, atol=5 * 0.5 / 2000**0.5)


def test_sampler_wants_something_to_show():
    for factors in (0, np.zeros(3), np.array([1.0, -1.0]), np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match="at least one picture with a positive factor"):
            EpochSampler(factors, seed=0)


def test_collate_joins_instances_and_remembers_their_sample(data):
    dataset = make_loader(data, TrainTransform(64), batch_size=2, seed=0)[0].dataset
    samples = [dataset[SampleKey(i, 0, i)] for i in range(7)]
    batch = collate(samples)
    assert len(batch) == 7
    assert batch.image.shape == (7, 64, 64, 3)
    assert batch.image.dtype == torch.uint8
    assert batch.masks.shape[1:] == (16, 16)
    assert batch.known_classes.tolist() == [[True, True]] * 7
    assert batch.image_ids.tolist() == list(range(1, 8))
    assert len(batch.ignore) == len(batch.ignore_labels) == len(batch.ignore_batch_index) > 0
    for i, sample in enumerate(samples):
        mine = batch.batch_index == i
        np.testing.assert_array_equal(batch.boxes[mine], sample.boxes)
        np.testing.assert_array_equal(batch.labels[mine], sample.labels)
        np.testing.assert_array_equal(batch.masks[mine], sample.masks)
        np.testing.assert_array_equal(batch.ignore[batch.ignore_batch_index == i], sample.ignore)
    moved = batch.to("cpu")
    assert same(moved, batch)
    nothing = collate([empty_sample(64, 2, 5)])
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks.shape == (0, 16, 16)
    assert nothing.batch_index.dtype == torch.int64


def test_a_picture_that_breaks_later_teaches_nothing_and_stops_nothing(data, caplog):
    data._images.clear()
    data.records[3].path.write_bytes(b"gone bad")
    batches = epoch_of(data, 0)
    broken = [b for b in batches if not b.known_classes.all()]
    assert len(broken) in (1, 2), "the epoch of 7 is filled up to 8 with one that was shown before"
    row = int((~broken[0].known_classes.any(1)).nonzero()[0])
    assert broken[0].image_ids[row] == 4
    assert not broken[0].image[row].any()
    assert not (broken[0].batch_index == row).any()
    assert "4.png: " in caplog.text


@pytest.mark.skipif("CENTERMASK_DATA" not in os.environ, reason="CENTERMASK_DATA names no data")
@pytest.mark.parametrize("names", [["animals"], ["nuclei"], ["street", "coco_mini", "animals"]])
def test_real_batches_hold_together(names):
    root = Path(os.environ["CENTERMASK_DATA"])
    data = load_datasets([root / n for n in names], "val")
    loader, _ = make_loader(data, TrainTransform(128), batch_size=4, seed=0)
    for batch, _ in zip(loader, range(4), strict=False):
        assert batch.boxes.shape == (len(batch.labels), 4)
        assert batch.boxes.min() >= 0
        assert batch.boxes.max() <= 128
        assert (batch.boxes[:, 2:] > batch.boxes[:, :2]).all()
        assert batch.known_classes[batch.batch_index, batch.labels].all()
        # The coverage outside of the box is nothing, beyond the cells that the box cuts.
        for box, mask in zip(batch.boxes, batch.masks, strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert columns.min() >= torch.floor(box[0] / 4 - 0.126)
            assert columns.max() < torch.ceil(box[2] / 4 + 0.126)
            assert rows.min() >= torch.floor(box[1] / 4 - 0.126)
            assert rows.max() < torch.ceil(box[3] / 4 + 0.126)


def test_the_samples_of_a_step_have_one_size_that_varies(data):
    """Two processes with two batches a step each: all four batches of a step show the same size."""
    shared = {"batch_size": 1, "batches_a_step": 2, "sizes": (64, 96, 128), "world_size": 2}
    epochs = range(3)
    first, second = ([b for e in epochs for b in epoch_of(data, e, rank=rank, **shared)] for rank in (0, 1))
    sides = [[b.image.shape[1] for b in group] for group in (first, second)]
    steps = list(zip(sides[0][::2], sides[0][1::2], sides[1][::2], sides[1][1::2], strict=True))
    assert len(steps) == 6  # seven pictures fill two steps of four in each of three epochs
    assert all(len(set(step)) == 1 for step in steps)
    assert len({step[0] for step in steps}) > 1
    assert {b.masks.shape[1] * 4 == b.image.shape[1] for b in first} == {True}
    again = [b for e in epochs for b in epoch_of(data, e, rank=0, workers=1, **shared)]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
