"""Checkpoint files: plain values and tensors, loadable with `weights_only`, and never half-written."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from centermask.config import ModelConfig
from centermask.nn.model import CenterMask

FORMAT = "centermask-checkpoint"
VERSION = 1
SUFFIX = ".checkpoint-part"
"""Of the name of a file that is being written."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        config: The model, with its class names and preprocessing.
        model: Weights to evaluate and to export (the averaged ones, if there were any).
        training: State of the run that wrote it; empty in a checkpoint that is for use only.
        info: Free facts for the model card: data sets, epochs, AP.
    """

    config: ModelConfig
    model: Mapping[str, Tensor]
    training: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> CenterMask:
        """The model with its weights, in eval mode.

        Raises:
            ValueError: Names or shapes of the weights do not fit the configuration.
        """
        model = CenterMask(self.config)
        # Weights may be stored in float16; the model computes in float32.
        weights = {k: v.float() if v.is_floating_point() else v for k, v in self.model.items()}
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint's weights do not fit its model {self.config.name}: {error}") from error
        return model.eval()


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint so that at any moment `path` is the old file or the new one, whole.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file is untouched.
        TypeError: It holds something else than tensors and plain values, which nobody could read back.
    """
    path = Path(path)
    _check_plain(checkpoint.info, "info")
    _check_plain(checkpoint.training, "training")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.to_dict(),
        "model": dict(checkpoint.model),
        "training": dict(checkpoint.training),
        "info": dict(checkpoint.info),
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                torch.save(values, file)
            except RuntimeError as error:  # torch's zip writer reports a full disk this way
                raise OSError(f"cannot write {path}: {error}") from error
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # a temporary file is private; a model need not be
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes what a `save_checkpoint` that was killed has left in a folder."""
    for path in Path(folder).glob(f".*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _check_plain(value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, name)
    elif type(value) not in (str, int, float, bool, type(None)) and not isinstance(value, Tensor):
        raise TypeError(f"a checkpoint holds tensors and plain values only; {name} is a {type(value)}")


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint without running any code that it might contain.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of ours, is damaged, or was written by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's readers let all kinds escape, by the place where the bytes are wrong
        # For this one torch advises to run whatever code the file holds; nobody is to follow that.
        unsafe = "it is no file of torch, or holds more than tensors and plain values"
        text = unsafe if isinstance(error, pickle.UnpicklingError) else str(error)
        reason = next(iter(text.splitlines()), type(error).__name__)
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{path} is not a centermask checkpoint (models of other projects: centermask convert)")
    version = values.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{path} has checkpoint version {version}; this centermask reads up to {VERSION}")
    try:
        config = ModelConfig.from_dict(values["config"])
        weights = {name: value for name, value in values["model"].items() if isinstance(value, Tensor)}
        if len(weights) != len(values["model"]):
            raise ValueError("not all weights are tensors")
        return Checkpoint(config, weights, dict(values.get("training", {})), dict(values.get("info", {})))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged checkpoint: {type(error).__name__}: {error}") from error


def slim_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint for use only: weights in float16, no state of the run.

    What float16 cannot hold (variances above 65504, say) stays as it is.
    """
    weights = {k: _halved(v) if v.is_floating_point() else v for k, v in checkpoint.model.items()}
    return Checkpoint(checkpoint.config, weights, {}, checkpoint.info)


def _halved(weight: Tensor) -> Tensor:
    half = weight.half()
    return half if bool(half.isfinite().all()) else weight


def _umask() -> int:
    # The system tells the mask only to those who set it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def rows_by_class(
    checkpoint: Checkpoint, class_names: Sequence[str], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights of a checkpoint, with the rows of what is predicted for each class in the order of other classes.

    Args:
        checkpoint: Where the weights come from.
        class_names: The classes of the model that takes them.
        target: That model's weights; the rows of classes that the checkpoint does not know are taken from here.
    """
    old = {name: row for row, name in enumerate(checkpoint.config.class_names)}
    shared = [(new, old[name]) for new, name in enumerate(class_names) if name in old]
    weights = dict(checkpoint.model)
    layers = ["heatmap.out"]
    if checkpoint.config.mask_head == "shape" and checkpoint.config.mask_channels > 1:
        layers.append("mask_features.out")
    for key in [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]:
        source = weights.pop(key, None)
        if source is None or key not in target or source.shape[1:] != target[key].shape[1:] or not shared:
            continue
        rows = target[key].clone()
        for new, row in shared:
            rows[new] = source[row].to(rows.dtype)
        weights[key] = rows
    return weights
