"""Where a picture lands in the network's input: the size policies of the published CenterNet variants and ours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from centermask.config import PreprocessConfig

MULTIPLE = 32
"""Inputs have sides that are multiples of the deepest stride."""


class InputPlan(NamedTuple):
    """How one picture becomes the input.

    Attributes:
        matrix: float64 `[2, 3]`, axis-aligned: image pixel -> input pixel, pixel centres at half-integers.
        size: Height and width of the input.
    """

    matrix: NDArray[np.float64]
    size: tuple[int, int]


def plan_input(image_size: tuple[int, int], config: PreprocessConfig) -> InputPlan:
    """The input's size and the map to it, by `config.policy`.

    - `fit`: the longest side becomes `config.size`, each side is padded to a multiple of 32, equally on both sides.
    - `fixed`: `config.size` square; the picture scaled by its longest side and centred (CenterNet with fix_res).
    - `keep`: no scaling; sides grow to `(side | 31) + 1`, and whole pixels are added (CenterNet with keep_res).

    Args:
        image_size: Height and width of the picture.
        config: Policy and size.

    Raises:
        ValueError: The picture has no pixels, or the policy is unknown.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"plan_input: image_size must be (height >= 1, width >= 1), got {(height, width)}")
    if config.policy == "keep":
        size = (height | 31) + 1, (width | 31) + 1
        shift = float(size[1] // 2 - width // 2), float(size[0] // 2 - height // 2)
        return InputPlan(_matrix(1.0, shift), size)
    if config.policy not in ("fit", "fixed"):
        raise ValueError(f"plan_input: policy must be fit, fixed or keep; got {config.policy!r}")
    scale = config.size / max(height, width)
    if config.policy == "fixed":
        size = config.size, config.size
    else:
        size = _round_up(height * scale), _round_up(width * scale)
    return InputPlan(_matrix(scale, ((size[1] - width * scale) / 2, (size[0] - height * scale) / 2)), size)


def _round_up(length: float) -> int:
    # 1e-6: a side of exactly n * 32 must not grow by the rounding of the scale.
    return max(MULTIPLE, int(np.ceil(length / MULTIPLE - 1e-6)) * MULTIPLE)


def _matrix(scale: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    return np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]], np.float64)
