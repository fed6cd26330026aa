"""Weights that anyone can make again from their names and shapes, for files under tests/golden."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

_OFFSETS = re.compile(r"conv_offset|offset_(mask_)?conv")
_LAST = re.compile(r"(_head\.2|_head\.out_conv|^hm\.2|^wh\.2|^reg\.2)\.weight")
_SIZES = re.compile(r"(wh_head\.2|wh_head\.out_conv|^wh\.2)\.bias")


def weights_for(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """float32 tensors of a state dict. NumPy keeps `RandomState`'s numbers the same for all time.

    The sizes of the values are such that activations stay of the order of 1, offsets are a cell or two, scores span
    most of 0..1, and boxes have positive sides.
    """
    weights = {}
    for name, shape in shapes.items():
        normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
        kind = name.rpartition(".")[2]
        if kind == "num_batches_tracked":
            weights[name] = torch.tensor(3)
            continue
        if kind == "running_var":
            value = 1 + 0.3 * np.tanh(normal)
        elif kind == "running_mean" or (kind == "bias" and "offset" in name):
            value = 0.3 * normal
        elif kind == "bias":
            value = 0.1 * normal + (12 if _SIZES.search(name) else 0)
        elif len(shape) == 1:  # of a norm; the second one of a block is what residuals add up from
            value = (1 + 0.2 * np.tanh(normal)) * (0.3 if ".bn2." in name else 1)
        else:
            spread = 0.3 if _OFFSETS.search(name) else 12.0 if _LAST.search(name) else 1.0
            value = spread * normal * (1.5 / np.prod(shape[1:])) ** 0.5
        weights[name] = torch.from_numpy(np.asarray(value, np.float32))
    return weights


def image(height: int = 64, width: int = 96) -> torch.Tensor:
    """A normalised picture, float32 [1, 3, height, width]."""
    return torch.from_numpy(np.random.RandomState(1).standard_normal((1, 3, height, width)).astype(np.float32))
