"""`centermask benchmark`: how long a model takes on this machine."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from centermask.predictor import Predictor
from centermask.preprocess import input_transform


def measure(predictor: Predictor, image: NDArray[np.uint8], runs: int = 20, warm_up: int = 3) -> dict[str, float]:
    """Median milliseconds of each step of a prediction on `image`, after some runs that do not count.

    Returns:
        `preprocess`, `network`, `masks`, `total` (medians), `fastest` and `slowest` (of the total).
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    steps = []
    for run in range(runs + warm_up):
        start = perf_counter()
        predictor(image)
        if run >= warm_up:
            timing = predictor.timing
            steps.append((timing.preprocess, timing.network, timing.masks, perf_counter() - start))
    values = 1e3 * np.array(steps)
    medians = np.median(values, axis=0)
    return {
        **dict(zip(("preprocess", "network", "masks", "total"), medians.tolist(), strict=True)),
        "fastest": float(values[:, 3].min()),
        "slowest": float(values[:, 3].max()),
    }


def input_size(predictor: Predictor, image: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width of the network's input for `image`."""
    return input_transform((image.shape[0], image.shape[1]), predictor.info.preprocess)[1]
