"""The one list of cases that the operations run on every device, and what says why one cannot."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from centermask import _core

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

# (device, precision): the CPU's own tolerance, and those that the kernels promise relative to the norm of a result.
# bfloat16 has three bits fewer than float16.
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-3, "fp16": 3e-3, "bf16": 2.4e-2}
PRECISIONS = [("cpu", "fp32"), *(pytest.param("cuda", name, marks=pytest.mark.cuda) for name in TOLERANCE)]


@functools.cache
def why_no_cuda() -> str | None:
    if not _core.has_cuda:
        return "centermask was built without CUDA"
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return None if torch.cuda.is_available() else "no CUDA device that PyTorch can use"


def skip_without(device: str) -> None:
    if device == "cuda" and why_no_cuda() is not None:
        pytest.skip(why_no_cuda() or "")


@dataclass(frozen=True)
class Case:
    """A deformable convolution."""

    name: str
    n: int
    c: int
    size: tuple[int, int]
    out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True
    relu: bool = False
    spread: float = 2.0

    @property
    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def out_size(self) -> tuple[int, int]:
        ends = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in ends)
        return height, width

    def arrays(self, seed: int = 0) -> list[np.ndarray | None]:
        """x, weight, offset, mask, bias and grad_output in float64."""
        rng = np.random.default_rng(seed)
        taps = self.kernel[0] * self.kernel[1]
        inner = self.c // self.groups
        return [
            rng.standard_normal((self.n, self.c, *self.size)),
            rng.standard_normal((self.out, inner, *self.kernel)) / np.sqrt(inner * taps),
            rng.standard_normal((self.n, 2 * self.offset_groups * taps, *self.out_size)) * self.spread,
            rng.uniform(size=(self.n, self.offset_groups * taps, *self.out_size)) if self.mask else None,
            rng.standard_normal(self.out) if self.bias else None,
            rng.standard_normal((self.n, self.out, *self.out_size)),
        ]


CASES = [
    Case("neck", 2, 64, (17, 13), 40),
    Case("relu", 3, 32, (16, 16), 64, relu=True),
    Case("empty batch", 0, 16, (8, 8), 8),
    Case("one pixel, one channel", 1, 1, (1, 1), 1, relu=True),
    Case("one column", 5, 3, (9, 1), 2, bias=False),
    Case("stride", 2, 24, (19, 23), 33, stride=(2, 3), padding=(1, 2)),
    Case("stride beyond the kernel", 2, 8, (14, 15), 16, stride=(4, 5), padding=(0, 1)),
    Case("dilation", 1, 20, (15, 14), 17, dilation=(2, 3), padding=(2, 3), mask=False),
    Case("5x1", 2, 17, (11, 12), 9, kernel=(5, 1), padding=(2, 0)),
    Case("1x1", 2, 65, (7, 9), 130, kernel=(1, 1), padding=(0, 0)),
    Case("7x7", 1, 5, (12, 10), 6, kernel=(7, 7), padding=(3, 3)),
    Case("2x2, no padding", 1, 33, (9, 9), 31, kernel=(2, 2), padding=(0, 0), mask=False, bias=False),
    Case("groups", 2, 48, (10, 11), 32, groups=4),
    Case("depthwise", 2, 12, (10, 9), 12, groups=12),
    Case("offset groups", 2, 48, (9, 10), 24, offset_groups=3),
    Case("groups and offset groups", 2, 24, (13, 9), 18, groups=2, offset_groups=3, stride=(2, 1), relu=True),
    Case("long sums", 1, 1024, (6, 5), 70),
    Case("wide", 16, 16, (40, 24), 16, mask=False),
    Case("whole offsets", 2, 16, (7, 9), 8, spread=0.0),
    Case("far offsets", 2, 16, (12, 12), 8, spread=30.0),
]
BY_NAME = {case.name: case for case in CASES}
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
