"""Pictures that are the same, or nearly so, among a hundred thousand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 5
"""Perceptual hashes that differ in more bits belong to different pictures."""
LEAST_CORRELATION = 0.985
"""Of the thumbnails, each to mean 0 and length 1."""
LEAST_CONTRAST = 3.0
"""Standard deviation of a thumbnail, in grey levels; flatter ones are alike by nature."""

_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
_BITS_SET = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)
_BLOCK = 512


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Positions of equal digests, two or more, in order of appearance; empty digests do not count."""
    groups: dict[bytes, list[int]] = {}
    for position, digest in enumerate(digests):
        if digest:
            groups.setdefault(digest, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def near_groups(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8]) -> list[list[int]]:
    """Positions of pictures that look the same: hash within `MOST_BITS`, thumbnails correlated.

    Two hashes that differ in 5 bits agree in at least one of 6 bands of bits (the pigeonhole principle), so that only
    pictures that share a band are compared.

    Args:
        hashes: uint64 [n].
        thumbnails: uint8 [n, 16, 16].

    Returns:
        Groups of two or more, sorted: who is near to a member belongs to the group.
    """
    n = len(hashes)
    values = thumbnails.reshape(n, -1).astype(np.float32)
    contrast = values.std(axis=1)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
    usable = np.flatnonzero(contrast >= LEAST_CONTRAST)
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for shift, width in _BANDS:
        band = (hashes[usable] >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(usable[order], edges):
            for first, second in _close(bucket, hashes, values):
                a, b = root(first), root(second)
                parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for i in usable.tolist():
        groups.setdefault(root(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _close(
    bucket: NDArray[np.int64], hashes: NDArray[np.uint64], values: NDArray[np.float32]
) -> Iterator[tuple[int, int]]:
    for start in range(0, len(bucket), _BLOCK):
        rows = bucket[start : start + _BLOCK]
        for other in range(start, len(bucket), _BLOCK):
            columns = bucket[other : other + _BLOCK]
            differing = (hashes[rows][:, None] ^ hashes[columns][None, :]).view(np.uint16)
            bits = _BITS_SET[differing].reshape(len(rows), len(columns), 4).sum(axis=2, dtype=np.uint8)
            for i, j in np.argwhere(bits <= MOST_BITS).tolist():
                first, second = int(rows[i]), int(columns[j])
                # Within a bucket positions rise, so each pair is met once.
                if first < second and float(values[first] @ values[second]) >= LEAST_CORRELATION:
                    yield first, second
