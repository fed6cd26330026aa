"""Deformable convolutions to test with, their definition in float64, and the choice of an instruction set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from centermask import _core

ISAS = _core.isa_available()


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = os.environ.get("CENTERMASK_ISA")
    os.environ["CENTERMASK_ISA"] = name
    try:
        assert _core.isa_used() == name
        yield
    finally:
        del os.environ["CENTERMASK_ISA"]
        if before is not None:
            os.environ["CENTERMASK_ISA"] = before


@dataclass
class Problem:
    x: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    mask: np.ndarray | None
    bias: np.ndarray | None
    geometry: dict[str, Any]

    @property
    def tensors(self) -> tuple[Any, ...]:
        return self.x, self.weight, self.offset, self.mask, self.bias


def make_problem(
    n: int, c: int, h: int, w: int, out: int, kernel: tuple[int, int], *, stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0), dilation: tuple[int, int] = (1, 1), groups: int = 1, offset_groups: int = 1,
    mask: bool = True, bias: bool = True, dtype: str = "float32", seed: int = 0, spread: float = 2.0,
) -> Problem:  # fmt: skip
    rng = np.random.default_rng(seed)
    oh, ow = (
        (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i, size in enumerate((h, w))
    )
    taps = kernel[0] * kernel[1]

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    return Problem(
        x=normal(n, c, h, w),
        weight=(normal(out, c // groups, *kernel) / np.sqrt(c // groups * taps)).astype(dtype),
        offset=normal(n, 2 * offset_groups * taps, oh, ow) * np.dtype(dtype).type(spread),
        mask=rng.uniform(size=(n, offset_groups * taps, oh, ow)).astype(dtype) if mask else None,
        bias=normal(out) if bias else None,
        geometry={"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


def bilinear(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """image [C, H, W] at (y, x), zero outside."""
    value = np.zeros(image.shape[0])
    if not (np.isfinite(y) and np.isfinite(x)):
        return value
    for py in (int(np.floor(y)), int(np.floor(y)) + 1):
        for px in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= py < image.shape[1] and 0 <= px < image.shape[2]:
                value += (1 - abs(y - py)) * (1 - abs(x - px)) * image[:, py, px]
    return value


def reference(p: Problem) -> np.ndarray:
    """The definition, in float64, one sample at a time."""
    x, weight, offset = (np.asarray(a, np.float64) for a in (p.x, p.weight, p.offset))
    n, c, _, _ = x.shape
    out, group_in, kh, kw = weight.shape
    oh, ow = offset.shape[2:]
    offset_groups = offset.shape[1] // (2 * kh * kw)
    offset = offset.reshape(n, offset_groups, kh * kw, 2, oh, ow)
    mask = np.ones((n, offset_groups * kh * kw, oh, ow)) if p.mask is None else np.float64(p.mask)
    mask = mask.reshape(n, offset_groups, kh * kw, oh, ow)
    per_offset_group = c // offset_groups
    groups = p.geometry["groups"]
    result = np.zeros((n, out, oh, ow))
    for b, oy, ox in np.ndindex(n, oh, ow):
        column = np.zeros((c, kh * kw))
        for og, tap in np.ndindex(offset_groups, kh * kw):
            y = oy * p.geometry["stride"][0] - p.geometry["padding"][0] + tap // kw * p.geometry["dilation"][0]
            x_ = ox * p.geometry["stride"][1] - p.geometry["padding"][1] + tap % kw * p.geometry["dilation"][1]
            dy, dx = offset[b, og, tap, :, oy, ox]
            own = slice(og * per_offset_group, (og + 1) * per_offset_group)
            column[own, tap] = mask[b, og, tap, oy, ox] * bilinear(x[b, own], y + dy, x_ + dx)
        for g in range(groups):
            outs = slice(g * out // groups, (g + 1) * out // groups)
            ins = slice(g * group_in, (g + 1) * group_in)
            result[b, outs, oy, ox] = weight[outs].reshape(-1, group_in * kh * kw) @ column[ins].ravel()
    return result if p.bias is None else result + np.float64(p.bias)[:, None, None]
