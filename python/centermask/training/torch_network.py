"""A torch model as a `Network`, so that the Predictor drives it exactly as it drives an exported file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from centermask.metadata import ModelInfo
from centermask.nn.model import CenterMask
from centermask.session import NetworkOutput


class TorchNetwork:
    """Runs `CenterMask.deploy`.

    Args:
        model: In any mode; it runs in eval mode and gets its own mode back.
        device: Where to run; None leaves the model where it is.
        score_threshold: Peaks below it are cut off in the network; the same default as in exported files.
        threads: CPU threads while it runs; None leaves torch's setting.
        flip: See `CenterMask.deploy`.
    """

    def __init__(
        self,
        model: CenterMask,
        *,
        device: torch.device | str | None = None,
        score_threshold: float = 0.05,
        threads: int | None = None,
        flip: bool = False,
    ) -> None:
        self._model = model if device is None else model.to(device)
        self._score_threshold = score_threshold
        self._threads = threads
        self._flip = flip
        self._info = ModelInfo.from_config(model.config, profile="torch")

    @property
    def info(self) -> ModelInfo:
        """What the model's configuration says."""
        return self._info

    def __call__(self, images: NDArray[np.float32]) -> NetworkOutput:
        """See `centermask.session.Network`."""
        device = next(self._model.parameters()).device
        was_training, threads = self._model.training, torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._model.eval()
        try:
            with torch.inference_mode():
                output = self._model.deploy(torch.from_numpy(images).to(device), self._score_threshold, flip=self._flip)
            arrays: list[Any] = [None if value is None else value.cpu().numpy() for value in output]
            return NetworkOutput(*arrays)
        finally:
            self._model.train(was_training)
            torch.set_num_threads(threads)
