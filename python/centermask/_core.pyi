"""The compiled core. Thin: exact dtypes in, NumPy arrays out; `centermask.ops` is what users call."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

def decode_centers(
    heatmap: NDArray[Any], top_k: int, score_threshold: float, threads: int
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def gather_patches(features: NDArray[Any], index: NDArray[np.int64], threads: int) -> NDArray[Any]: ...
def isa_available() -> tuple[str, ...]: ...
def isa_used() -> str: ...
def preprocess(
    image: NDArray[np.uint8],
    image_to_input: list[float],
    mean: list[float],
    std: list[float],
    swap_channels: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
