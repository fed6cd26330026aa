"""From a data set to batches of tensors, the same ones whatever the number of workers and wherever one resumes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from centermask.training.augment import TrainSample, TrainTransform
from centermask.training.data import CocoDataset, DataError, ImageRecord
from centermask.training.mixing import MixOptions, Picture, mixed_sample

_log = logging.getLogger("centermask.training.data")


class SampleKey(NamedTuple):
    """Everything that a sample depends on, next to the data set and the seed.

    Attributes:
        picture: Its index in the data set.
        epoch: Counted from 0.
        position: Place in the epoch, counted over all processes.
    """

    picture: int
    epoch: int
    position: int


@dataclass(frozen=True)
class TrainBatch:
    """B samples of S x S pixels with T instances and R ignore regions in all.

    Attributes:
        image: uint8 [B, S, S, 3], RGB.
        boxes: float32 [T, 4], xyxy, input pixels.
        labels: int64 [T].
        masks: uint8 [T, S/4, S/4]: covered share of each 4x4 block, 0..255.
        batch_index: int64 [T]: the sample that each instance belongs to; ascending.
        ignore: uint8 [R, S/4, S/4].
        ignore_labels: int64 [R].
        ignore_batch_index: int64 [R]; ascending.
        known_classes: bool [B, C].
        image_ids: int64 [B].
    """

    image: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor
    batch_index: torch.Tensor
    ignore: torch.Tensor
    ignore_labels: torch.Tensor
    ignore_batch_index: torch.Tensor
    known_classes: torch.Tensor
    image_ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TrainBatch:
        """The batch on another device."""
        return TrainBatch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> TrainBatch:
        """The batch in page-locked memory; the DataLoader calls this where `pin_memory` is set."""
        return TrainBatch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


def collate(samples: Sequence[TrainSample]) -> TrainBatch:
    """Joins samples of one size."""
    return TrainBatch(
        image=torch.from_numpy(np.stack([s.image for s in samples])),
        boxes=torch.from_numpy(np.concatenate([s.boxes for s in samples])),
        labels=torch.from_numpy(np.concatenate([s.labels for s in samples])),
        masks=torch.from_numpy(np.concatenate([s.masks for s in samples])),
        batch_index=_owners([len(s.labels) for s in samples]),
        ignore=torch.from_numpy(np.concatenate([s.ignore for s in samples])),
        ignore_labels=torch.from_numpy(np.concatenate([s.ignore_labels for s in samples])),
        ignore_batch_index=_owners([len(s.ignore_labels) for s in samples]),
        known_classes=torch.from_numpy(np.stack([s.known_classes for s in samples])),
        image_ids=torch.tensor([s.image_id for s in samples], dtype=torch.int64),
    )


def _owners(counts: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(counts), dtype=np.int64), counts))


class TrainDataset(Dataset[TrainSample]):
    """Augmented samples of a data set, addressed by `SampleKey`.

    Args:
        dataset: The pictures.
        transform: Makes the samples.
        seed: Of the run.
        mixing: See `make_loader`.
        sizes: Sides of the samples; each step takes one of them, and none for that of `transform`.
        step: Samples a step, over all processes.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        transform: TrainTransform,
        seed: int,
        mixing: MixOptions | None = None,
        *,
        sizes: Sequence[int] = (),
        step: int = 1,
    ) -> None:
        self.dataset = dataset
        self.transforms = [replace(transform, size=size) for size in sizes] or [transform]
        self.step = step
        self.seed = seed
        self.mixing = mixing
        sources = np.array([record.source for record in dataset.records])
        self._peers = [np.flatnonzero(sources == source) for source in range(len(dataset.sources))]

    def __getitem__(self, key: SampleKey) -> TrainSample:
        picture, epoch, position = key
        rng = np.random.default_rng((self.seed, epoch, position))
        transform = self.transforms[0]
        if len(self.transforms) > 1:  # the same for all samples of a step, in whatever process they are made
            choice = np.random.default_rng((self.seed, epoch, position // self.step, 1))
            transform = self.transforms[int(choice.integers(len(self.transforms)))]
        record = self.dataset.records[picture]
        try:
            image = self.dataset.image(picture)
            if self.mixing is None:
                return transform(record, image, rng)
            return mixed_sample(transform, self.mixing, (record, image), lambda: self._partner(record, rng), rng)
        except DataError as error:
            # A broken file must not end a run of hours: it becomes a black picture that teaches nothing at all.
            _log.warning("%s; the picture is left out", error)
            return empty_sample(transform.size, len(self.dataset.class_names), record.image_id)

    def _partner(self, record: ImageRecord, rng: np.random.Generator) -> Picture:
        other = int(rng.choice(self._peers[record.source]))
        return self.dataset.records[other], self.dataset.image(other)


def empty_sample(size: int, class_count: int, image_id: int) -> TrainSample:
    """A black picture without instances, of which no class is known."""
    nothing = np.zeros((0, size // 4, size // 4), dtype=np.uint8)
    return TrainSample(
        image=np.zeros((size, size, 3), dtype=np.uint8),
        boxes=np.zeros((0, 4), dtype=np.float32),
        labels=np.zeros(0, dtype=np.int64),
        masks=nothing,
        ignore=nothing,
        ignore_labels=np.zeros(0, dtype=np.int64),
        known_classes=np.zeros(class_count, dtype=np.bool_),
        image_id=image_id,
        image_to_input=np.eye(2, 3),
    )


class EpochSampler(Sampler[SampleKey]):
    """A random order of the pictures that depends on seed and epoch alone.

    Args:
        factors: float64 [N]: how often each picture is to be shown in an epoch, on average. A count of pictures
            stands for 1 everywhere: each once.
        seed: Of the run.
        multiple: The epoch is filled up to a multiple of this (the batch size over all processes) by starting over.
        rank: This process; it gets every `world_size`-th sample.
        world_size: Number of processes.
    """

    def __init__(
        self,
        factors: NDArray[np.float64] | int,
        *,
        seed: int,
        multiple: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.factors = np.ones(factors) if isinstance(factors, int) else np.asarray(factors, dtype=np.float64)
        if not len(self.factors) or not self.factors.sum() > 0 or not (self.factors >= 0).all():
            raise ValueError("EpochSampler: needs at least one picture with a positive factor")
        if multiple % world_size:
            raise ValueError(f"EpochSampler: multiple must be one of world_size={world_size}, got {multiple}")
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        self._shown = max(1, round(float(self.factors.sum())))
        self._length = -(-self._shown // multiple) * multiple

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch that the next iteration gives.

        Args:
            epoch: Counted from 0.
            start: Samples of this process that were used already: batches done times the batch size.
        """
        self.epoch = epoch
        self.start = start

    def plan(self, epoch: int) -> NDArray[np.int64]:
        """The pictures of an epoch in order, over all processes."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.factors))
        # Systematic sampling: each picture is shown floor or ceil of its factor, and the total is always the same.
        edges = np.cumsum(self.factors[order]) * (self._shown / self.factors.sum())
        edges[-1] = self._shown
        times = np.diff(np.floor(edges + rng.uniform()), prepend=0).astype(np.int64)
        indices = np.repeat(order, times)[: self._shown]
        rng.shuffle(indices)
        return np.resize(indices, self._length)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        plan = self.plan(epoch)
        for position in range(self.rank + self.start * self.world_size, self._length, self.world_size):
            yield SampleKey(int(plan[position]), epoch, position)

    def __len__(self) -> int:
        """Samples of this process in a whole epoch."""
        return self._length // self.world_size


def make_loader(
    dataset: CocoDataset,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    batches_a_step: int = 1,
    sizes: Sequence[int] = (),
    workers: int = 0,
    mixing: MixOptions | None = None,
    factors: NDArray[np.float64] | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> tuple[DataLoader[TrainBatch], EpochSampler]:
    """A loader and the sampler that drives it; call `sampler.set_epoch(epoch, start)` before each epoch.

    Args:
        dataset: The training set.
        transform: Makes the samples.
        batch_size: Samples a batch in this process.
        seed: Of the run.
        batches_a_step: Batches of this process that make one step of the optimizer; an epoch holds whole steps.
        sizes: Sides of the samples, of which each step takes one at random; none for that of `transform`.
        workers: Worker processes; 0 works in this one. The batches are the same for any number.
        mixing: Mosaic and copy-paste; None for neither.
        factors: See `EpochSampler`; None shows every picture once.
        rank: This process.
        world_size: Number of processes.
        pin_memory: Batches in page-locked memory, for a quicker way to a GPU.
    """
    step = batch_size * world_size * batches_a_step
    sampler = EpochSampler(
        len(dataset) if factors is None else factors,
        seed=seed,
        multiple=step,
        rank=rank,
        world_size=world_size,
    )
    loader: DataLoader[TrainBatch] = DataLoader(
        TrainDataset(dataset, transform, seed, mixing, sizes=sizes, step=step),  # type: ignore[arg-type]
        batch_sampler=BatchSampler(sampler, batch_size, drop_last=False),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
    )
    return loader, sampler


def _start_worker(worker: int) -> None:
    # Workers are the parallelism; threads inside them would only fight over the same cores.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
