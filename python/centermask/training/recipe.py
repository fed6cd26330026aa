"""Size, batch, epochs and learning rate chosen from the data and the machine, with reasons."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from centermask.config import STRIDE
from centermask.training.data import CocoDataset

SIZES = (192, 256, 320, 384, 448, 512, 640, 768)
RATE = 1e-3
"""Learning rate at batch size 16, which the loop scales with the batch."""

_CPU_LARGEST = 384
_CPU_MINUTES = 40.0
_GPU_MINUTES = 60.0
_SMALL_SHARE = 0.1
_SMALL_CELLS = 3.0
_LEAST_STEPS = 300
_MOST_EPOCHS = 150
_WANTED_STEPS = 6000
_GPU_PICTURE_BYTES = 9e8
"""Of the GPU's memory that a picture of 512 px takes in training: activations and gradients of a small model."""
_CPU_SECONDS = 0.2
"""A picture of 320 px on two cores; measured while the embedded model was trained (0.14 s at 272 px, part frozen)."""
_GPU_SECONDS = 0.006


@dataclass(frozen=True)
class Machine:
    """What there is to train on.

    Attributes:
        cuda: On a GPU.
        cores: Of the CPU.
        memory: Bytes of the GPU, else of the machine.
    """

    cuda: bool
    cores: int
    memory: int

    @classmethod
    def here(cls, accelerator: str = "auto") -> Machine:
        """This one; `accelerator` as in `TrainConfig`."""
        import torch

        if accelerator != "cpu" and torch.cuda.is_available():
            return cls(True, os.cpu_count() or 1, int(torch.cuda.get_device_properties(0).total_memory))
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return cls(False, len(os.sched_getaffinity(0)), pages * page)


@dataclass(frozen=True)
class DataFacts:
    """What the choice depends on.

    Attributes:
        pictures: To learn from.
        longest_side: Median of the pictures' longer sides, in pixels.
        small_object: Side (root of the box's area) below which a tenth of the objects lie, as a share of the longer
            side of its picture; 1 without objects.
    """

    pictures: int
    longest_side: float
    small_object: float

    @classmethod
    def of(cls, data: CocoDataset) -> DataFacts:
        """Of a training set."""
        sides = [max(record.width, record.height) for record in data.records]
        objects = [
            math.sqrt(item.box[2] * item.box[3]) / side
            for record, side in zip(data.records, sides, strict=True)
            for item in record.annotations
            if not item.ignore
        ]
        small = float(np.quantile(objects, _SMALL_SHARE)) if objects else 1.0
        return cls(len(data.records), float(np.median(sides)), small)


@dataclass(frozen=True)
class Recipe:
    """The choice.

    Attributes:
        size: `--size`.
        batch_size: `--batch-size`.
        epochs: `--epochs`.
        learning_rate: `--learning-rate` (at batch size 16).
        warmup_steps: `--warmup-steps`.
        seconds: Estimated time of the run.
        reasons: One sentence for each choice.
    """

    size: int
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_steps: int
    seconds: float
    reasons: tuple[str, ...]

    def text(self) -> str:
        """What is printed before a run."""
        minutes = self.seconds / 60
        lines = [
            f"chosen: --size {self.size} --batch-size {self.batch_size} --epochs {self.epochs} "
            f"--learning-rate {self.learning_rate:g} --warmup-steps {self.warmup_steps}",
            *(f"  {reason}" for reason in self.reasons),
            f"about {minutes:.0f} minutes; give any of these options to choose yourself",
        ]
        return "\n".join(lines)


PictureSeconds = Callable[[int], float]
"""Seconds that one picture of a step takes at an input size."""


def estimated_seconds(machine: Machine) -> PictureSeconds:
    """A guess where nothing was measured: time grows with the pixels, and falls with the cores of a CPU."""
    base, at = (_GPU_SECONDS, 512) if machine.cuda else (_CPU_SECONDS * 2 / machine.cores, 320)
    return lambda size: base * (size / at) ** 2


def choose(
    facts: DataFacts, machine: Machine, *, minutes: float | None = None, picture_seconds: PictureSeconds | None = None
) -> Recipe:
    """Chooses what fits into the time.

    Args:
        facts: About the training set.
        machine: To train on.
        minutes: Time for the run; None for 40 minutes on a CPU and 60 on a GPU.
        picture_seconds: Measured times; None for estimates.

    Raises:
        ValueError: There are no pictures.
    """
    if facts.pictures < 1:
        raise ValueError("recipe: there are no pictures to learn from")
    minutes = minutes if minutes is not None else _GPU_MINUTES if machine.cuda else _CPU_MINUTES
    seconds_at = picture_seconds or estimated_seconds(machine)
    size, why_size = _size(facts, machine)
    batch, why_batch = _batch(facts, machine, size)
    steps_an_epoch = math.ceil(facts.pictures / batch)
    epoch = steps_an_epoch * batch * seconds_at(size)
    affordable = max(1, int(60 * minutes / epoch))
    wanted = min(_MOST_EPOCHS, max(1, math.ceil(_WANTED_STEPS / steps_an_epoch)))
    epochs = max(min(affordable, wanted), min(wanted, math.ceil(_LEAST_STEPS / steps_an_epoch)))
    if epochs > affordable:
        why_epochs = (
            f"epochs {epochs}: fewer than {_LEAST_STEPS} steps teach too little, so it takes longer than wanted"
        )
    elif epochs == wanted:
        why_epochs = f"epochs {epochs}: more rarely helps with {facts.pictures} pictures"
    else:
        why_epochs = f"epochs {epochs}: what fits into {minutes:.0f} minutes"
    steps = epochs * steps_an_epoch
    return Recipe(
        size=size,
        batch_size=batch,
        epochs=epochs,
        learning_rate=RATE,
        warmup_steps=max(10, min(300, steps // 20)),
        seconds=epochs * epoch,
        reasons=(why_size, why_batch, why_epochs),
    )


def _size(facts: DataFacts, machine: Machine) -> tuple[int, str]:
    """Large enough that the small objects span some cells of the heatmap; no larger than the pictures."""
    most = 768 if machine.cuda else _CPU_LARGEST
    usual = 512 if machine.cuda else 320
    needed = _SMALL_CELLS * STRIDE / max(facts.small_object, 1e-3)
    if machine.cuda:  # two pictures must fit
        most = min(most, int(512 * math.sqrt(0.8 * machine.memory / (2 * _GPU_PICTURE_BYTES))))
    allowed = [size for size in SIZES if size <= most and size < facts.longest_side * 1.25] or [SIZES[0]]
    target = max(usual, min(needed, most))
    size = min(allowed, key=lambda option: (option < min(target, allowed[-1]), abs(option - target)))
    if size < usual:
        return size, f"size {size}: the pictures are {facts.longest_side:.0f} pixels long"
    if size > usual:
        return (
            size,
            f"size {size}: a tenth of the objects is smaller than {100 * facts.small_object:.1f} % of the picture",
        )
    limit = "a CPU is slow above it" if not machine.cuda and needed > usual else "enough for these objects"
    return size, f"size {size}: {limit}"


def _batch(facts: DataFacts, machine: Machine, size: int) -> tuple[int, str]:
    """As many as fit, a power of two; small sets need steps more than large batches."""
    most, why = 8, "usual on a CPU"
    if machine.cuda:
        fitting = machine.memory * 0.8 / (_GPU_PICTURE_BYTES * (size / 512) ** 2)
        most = 2 ** max(1, min(5, math.floor(math.log2(max(fitting, 1.0)))))
        why = f"what {machine.memory / 2**30:.0f} GiB of the GPU hold" if most < 32 else "more gains nothing"
    few = 2 ** max(0, math.floor(math.log2(max(facts.pictures / 10, 1))))
    if few < most:
        return max(few, 2), f"batch {max(few, 2)}: there are only {facts.pictures} pictures"
    return most, f"batch {most}: {why}"
