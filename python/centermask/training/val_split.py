"""Which pictures a training run is judged on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from centermask.training.coco_reader import DataError, has_split, read_json
from centermask.training.data import CocoDataset, load_datasets
from centermask.training.layouts import find_splits, split_name

logger = logging.getLogger(__name__)


def must_be_made(folders: Sequence[Path], split: str) -> bool:
    """Whether none of the data sets has the split `val` that is asked for, so that it is held out of `train`."""
    return split_name({}, split) == "val" and not any(has_split(folder, split) for folder in folders)


def load_val(
    folders: Sequence[Path], split: str, train: CocoDataset, *, all_classes: bool, make_val: bool
) -> CocoDataset | None:
    """The pictures to evaluate on, of all data sets that have the split.

    Args:
        folders: The data sets.
        split: Its name.
        train: What is learned, read from the same folders.
        all_classes: Nobody chose the classes; then each set must label the same ones in both its splits.
        make_val: Hold them out of `train`, see `must_be_made`.

    Returns:
        None where no set has one of the learned classes in it.

    Raises:
        DataError: No set has the split, the class sets of two splits differ, or no picture is usable: figures
            would mislead.
    """
    # Every picture knows what its own set labels, which spares reading those files again.
    known = {record.source: record.known_classes for record in train.records}
    judged: list[Path] = []
    there: set[str] = set()
    for source, folder in enumerate(folders):
        if not make_val and not has_split(folder, split):
            continue
        judged.append(folder)
        names = set(read_json(folder, split, make_val=make_val).categories.values())
        taught = {name for name, is_known in zip(train.class_names, known.get(source, ()), strict=False) if is_known}
        if all_classes and taught and names != taught:
            raise DataError(
                f"{folder}: train and {split} label different classes: {sorted(taught - names)} only train, "
                f"{sorted(names - taught)} only {split}; figures would mislead. Name what to learn with --classes"
            )
        there |= names
    if not judged:
        there = {name for folder in folders for name in find_splits(folder)}
        raise DataError(
            f"no data set has the split {split!r} to evaluate on; there are: {', '.join(sorted(there))}. "
            "Choose one of them, or none with --val-split ''"
        )
    classes = [name for name in train.class_names if name in there]
    if len(classes) < len(train.class_names):
        missing = [name for name in train.class_names if name not in there]
        logger.warning("no %s data has the classes %s: they are not evaluated", split, missing)
    return load_datasets(judged, split, classes=classes, make_val=make_val) if classes else None
