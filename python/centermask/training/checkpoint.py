"""Checkpoint files: plain values and tensors, loadable with `weights_only`, and never half-written."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from centermask.config import ModelConfig
from centermask.nn.model import CenterMask

FORMAT = "centermask-checkpoint"
VERSION = 1


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoint.config.to_dict(),
        "model": dict(checkpoint.model),
        "training": dict(checkpoint.training),
        "info": dict(checkpoint.info),
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            try:
                torch.save(values, file)
            except RuntimeError as error:  # torch's zip writer reports a full disk this way
                raise OSError(f"cannot write {path}: {error}") from error
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"{path} is not a centermask checkpoint (models of other projects: centermask convert)")
    if values["version"] > VERSION:
        raise ValueError(f"{path} has checkpoint version {values['version']}; this centermask reads up to {VERSION}")
    return Checkpoint(
        ModelConfig.from_dict(values["config"]), values["model"], values.get("training", {}), values.get("info", {})
    )


def slim_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint for use only: weights in float16, no state of the run."""
    weights = {k: v.half() if v.is_floating_point() else v for k, v in checkpoint.model.items()}
    return Checkpoint(checkpoint.config, weights, {}, checkpoint.info)
