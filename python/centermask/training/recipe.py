"""Size, batch, epochs and learning rate chosen from the data and the machine, with reasons."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from centermask.config import STRIDE
from centermask.training.coco_masks import BadMask, extent, read_rings
from centermask.training.coco_reader import CocoFile, read_json
from centermask.training.data import CocoDataset
from centermask.training.progress import in_words
from centermask.training.yolo import scaled
from centermask.wording import counted

CHOSEN = ("size", "batch_size", "epochs", "learning_rate", "warmup_steps", "freeze_stages", "patience")
"""The settings that are chosen."""

SIZES = (192, 256, 320, 384, 448, 512, 640, 768)
RATE = 1e-3
"""Learning rate at batch size 16, which the loop scales with the batch."""

_CPU_LARGEST = 384
_CPU_MINUTES = 40.0
_GPU_MINUTES = 60.0
_SMALL_SHARE = 0.1
_SMALL_CELLS = 3.0
_LEAST_STEPS = 300
_MOST_EPOCHS = 300
_WANTED_STEPS = 6000
_CPU_FROZEN = 2
_CPU_FROZEN_SHARE = 0.7
"""Of the time of a step that is left with so many stages frozen: 0.11 of 0.165 CPU seconds a picture of 320 px."""
_PATIENCE_SHARE = 3
_LEAST_PATIENCE = 5
_GPU_PICTURE_BYTES = 9e8
"""Of the GPU's memory that a picture of 512 px takes in training: activations and gradients of a small model."""
_CPU_SECONDS = 0.2
"""A picture of 320 px on two cores. Two of an AMD EPYC (Zen 5) took 0.083 s; most machines are slower."""
_GPU_SECONDS = 0.006
_HEADERS = 500
"""Pictures whose size is looked up in their files where the labels do not tell it."""


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
        return cls._from(len(data.records), sides, objects)

    @classmethod
    def read(cls, paths: Sequence[Path], *, classes: Sequence[str] = (), make_val: bool = False) -> DataFacts:
        """Of the training split on disk, from its labels alone: much quicker than loading it, and nothing is checked.

        Where labels do not tell the sizes of their pictures (YOLO), the headers of some pictures do.

        Args:
            paths: See `data.load_datasets`.
            classes: Those to learn; empty for all.
            make_val: See `coco_reader.read_json`.

        Raises:
            DataError: A folder or file is missing or not COCO.
        """
        pictures, sides, objects, wanted = 0, list[int](), list[float](), set(classes)
        for path in paths:
            file = read_json(Path(path), "train", make_val=make_val)
            pictures += len(file.images)
            sizes = _picture_sizes(file)
            sides += [max(size) for size in sizes.values()]
            for row in file.annotations:
                if not isinstance(row, dict) or row.get("iscrowd"):
                    continue
                key, category = row.get("image_id"), row.get("category_id")
                name = file.categories.get(category) if isinstance(category, int) else None
                if name is None or (wanted and name not in wanted):
                    continue
                size = sizes.get(key) if isinstance(key, (int, str)) else None
                area = _box_area(row, size) if size else 0.0
                if size and area > 0:
                    objects.append(math.sqrt(area) / max(size))
        return cls._from(pictures, sides, objects)

    @classmethod
    def _from(cls, pictures: int, sides: Sequence[int], objects: Sequence[float]) -> DataFacts:
        small = float(np.quantile(objects, _SMALL_SHARE)) if objects else 1.0
        return cls(pictures, float(np.median(sides)) if sides else math.inf, small)


def _picture_sizes(file: CocoFile) -> dict[int | str, tuple[int, int]]:
    """Picture id -> width and height, of those whose labels tell it, and of some of the others."""
    sizes: dict[int | str, tuple[int, int]] = {}
    silent: list[tuple[int | str, str]] = []
    for row in file.images:
        if not isinstance(row, dict) or not isinstance(row.get("id"), (int, str)):
            continue
        width, height = row.get("width"), row.get("height")
        if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
            sizes[row["id"]] = width, height
        elif isinstance(row.get("file_name"), str):
            silent.append((row["id"], row["file_name"]))
    for key, name in silent[:: math.ceil(len(silent) / _HEADERS) or 1]:
        try:
            with Image.open(file.split.picture(name)) as picture:
                sizes[key] = picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # who loads the data tells it
    return sizes


def _box_area(row: Mapping[str, Any], size: tuple[int, int]) -> float:
    """Of the box of an annotation, or around its polygons, in square pixels; 0 where it has neither."""
    row = scaled(row, *size)
    box = row.get("bbox")
    try:
        if box is None:
            box = extent(read_rings(row.get("segmentation")), None)
        width, height = float(box[2]), float(box[3])
    except (BadMask, LookupError, OverflowError, TypeError, ValueError):
        return 0.0
    area = width * height if min(width, height) > 0 else 0.0
    return area if math.isfinite(area) else 0.0


@dataclass(frozen=True)
class Recipe:
    """The choice.

    Attributes:
        size: `--size`.
        batch_size: `--batch-size`.
        epochs: `--epochs`.
        learning_rate: `--learning-rate` (at batch size 16).
        warmup_steps: `--warmup-steps`.
        freeze_stages: `--freeze-stages`.
        patience: `--patience`.
        seconds: Estimated time of the run.
        reasons: One sentence for each choice.
        given: Names of the settings that were not chosen but given.
    """

    size: int
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_steps: int
    freeze_stages: int
    patience: int
    seconds: float
    reasons: tuple[str, ...]
    given: frozenset[str] = frozenset()

    def settings(self) -> dict[str, Any]:
        """The chosen settings, by their names in `TrainConfig`; none of those that were given."""
        return {name: getattr(self, name) for name in CHOSEN if name not in self.given}

    def text(self) -> str:
        """What is printed before a run."""
        told = {name: value for name, value in self.settings().items() if value}  # what is off needs no word
        options = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in told.items())
        lines = [
            f"chosen: {options}",
            *(f"  {reason}" for reason in self.reasons),
            f"takes {in_words(self.seconds)}, as an estimate; give any of these options to choose yourself",
        ]
        return "\n".join(lines)


PictureSeconds = Callable[[int], float]
"""Seconds that one picture of a step takes at an input size."""


def estimated_seconds(machine: Machine) -> PictureSeconds:
    """A guess where nothing was measured: time grows with the pixels, and falls with the cores of a CPU."""
    base, at = (_GPU_SECONDS, 512) if machine.cuda else (_CPU_SECONDS * 2 / machine.cores, 320)
    return lambda size: base * (size / at) ** 2


def choose(
    facts: DataFacts,
    machine: Machine,
    *,
    minutes: float | None = None,
    picture_seconds: PictureSeconds | None = None,
    given: Mapping[str, Any] | None = None,
    processes: int = 1,
    eval_every: int = 0,
    freezable: bool = True,
) -> Recipe:
    """Chooses what fits into the time.

    Args:
        facts: About the training set.
        machine: To train on.
        minutes: Time for the run; None for 40 minutes on a CPU and 60 on a GPU.
        picture_seconds: Measured times; None for estimates.
        given: Settings among `CHOSEN` that are fixed; the others are chosen to go with them.
        processes: That share a batch, each on a device of its own.
        eval_every: Epochs between evaluations; 0 for none.
        freezable: The backbone's first stages may stay as they are: they are known, and have learned something.

    Raises:
        ValueError: There are no pictures.
    """
    if facts.pictures < 1:
        raise ValueError("recipe: there are no pictures to learn from")
    given = given or {}
    reasons: dict[str, str] = {}
    minutes = minutes if minutes is not None else _GPU_MINUTES if machine.cuda else _CPU_MINUTES
    seconds_at = picture_seconds or estimated_seconds(machine)
    size, reasons["size"] = _size(facts, machine)
    size = given.get("size", size)
    batch, reasons["batch_size"] = _batch(facts, machine, size)
    if batch % processes:
        batch = math.ceil(batch / processes) * processes
        reasons["batch_size"] = f"batch {batch}: shared by {processes} processes"
    batch = given.get("batch_size", batch)
    freeze, reasons["freeze_stages"] = _freeze(machine, freezable)
    freeze = given.get("freeze_stages", freeze)
    steps_an_epoch = math.ceil(facts.pictures / batch)
    epoch = steps_an_epoch * batch * seconds_at(size) / (processes if machine.cuda else 1)
    if freeze >= _CPU_FROZEN and not machine.cuda and picture_seconds is None:
        epoch *= _CPU_FROZEN_SHARE
    epochs, reasons["epochs"] = _epochs(facts, steps_an_epoch, epoch, minutes)
    epochs = given.get("epochs", epochs)
    reasons["learning_rate"] = f"learning rate {RATE:g}: the usual one; it is for batch 16 and scaled with the batch"
    warmup = max(10, min(300, epochs * steps_an_epoch // 20))
    reasons["warmup_steps"] = f"warm-up {warmup}: a twentieth of the steps, between 10 and 300"
    patience, reasons["patience"] = _patience(epochs, eval_every)
    return Recipe(
        size=size,
        batch_size=batch,
        epochs=epochs,
        learning_rate=given.get("learning_rate", RATE),
        warmup_steps=given.get("warmup_steps", warmup),
        freeze_stages=freeze,
        patience=given.get("patience", patience),
        seconds=epochs * epoch,
        reasons=tuple(reason for name, reason in reasons.items() if reason and name not in given),
        given=frozenset(given) & frozenset(CHOSEN),
    )


def _freeze(machine: Machine, freezable: bool) -> tuple[int, str]:
    """On a CPU the first stages, whose maps are the largest: they see edges and colours, as ImageNet taught them."""
    if machine.cuda or not freezable:
        return 0, ""
    return _CPU_FROZEN, f"frozen stages {_CPU_FROZEN}: the first ones need no learning, and take a third of the time"


def _patience(epochs: int, eval_every: int) -> tuple[int, str]:
    """A third of the run: the learning rate falls all the time, and what it brings comes late."""
    if not eval_every:
        return 0, ""
    patience = max(_LEAST_PATIENCE, math.ceil(epochs / eval_every / _PATIENCE_SHARE))
    return patience, f"patience {patience}: the run ends early if so many evaluations bring nothing better (0: never)"


def _epochs(facts: DataFacts, steps_an_epoch: int, seconds: float, minutes: float) -> tuple[int, str]:
    """As many as help and fit; `seconds` is what one takes."""
    affordable = max(1, int(60 * minutes / seconds))
    wanted = min(_MOST_EPOCHS, max(1, math.ceil(_WANTED_STEPS / steps_an_epoch)))
    epochs = max(min(affordable, wanted), min(wanted, math.ceil(_LEAST_STEPS / steps_an_epoch)))
    if epochs > affordable:
        return (
            epochs,
            f"epochs {epochs}: fewer than {_LEAST_STEPS} steps teach too little, so it takes longer than wanted",
        )
    if epochs == wanted:
        return epochs, f"epochs {epochs}: more rarely helps with {counted(facts.pictures, 'picture')}"
    return epochs, f"epochs {epochs}: what fits into {minutes:.0f} minutes"


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
        return max(few, 2), f"batch {max(few, 2)}: of only {counted(facts.pictures, 'picture')}"
    return most, f"batch {most}: {why}"
