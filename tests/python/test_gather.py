"""gather_patches against plain loops and against a dense convolution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask import ops


def reference(features: np.ndarray, index: np.ndarray) -> np.ndarray:
    n, channels, height, width = features.shape
    result = np.zeros((n, index.shape[1], channels * 9), features.dtype)
    for i in range(n):
        for k, cell in enumerate(index[i].tolist()):
            if not 0 <= cell < height * width:
                continue
            y, x = divmod(cell, width)
            for f in range(channels):
                for ky in range(3):
                    for kx in range(3):
                        v, u = y + ky - 1, x + kx - 1
                        if 0 <= v < height and 0 <= u < width:
                            result[i, k, f * 9 + ky * 3 + kx] = features[i, f, v, u]
    return result


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3),
    channels=st.sampled_from([0, 1, 3, 17]),
    height=st.integers(0, 5),
    width=st.integers(0, 5),
    k=st.integers(0, 9),
    dtype=st.sampled_from([np.float32, np.float64]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_equals_the_loops(
    n: int, channels: int, height: int, width: int, k: int, dtype: type, threads: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, channels, height, width)).astype(dtype)
    index = random.integers(-2, height * width + 2, (n, k))  # also cells that do not exist
    patches = ops.gather_patches(features, index, threads=threads)
    assert patches.dtype == dtype
    np.testing.assert_array_equal(patches, reference(features, index))  # copies: not one bit may differ


def test_far_indices_read_nothing() -> None:
    far = np.array([[np.iinfo(np.int64).min, np.iinfo(np.int64).max, -1, 4]])
    assert (ops.gather_patches(np.ones((1, 2, 2, 2), np.float32), far) == 0).all()


def test_nan_beyond_the_border_does_not_leak() -> None:
    # A tap beyond the map is 0, not 0 * something.
    features = np.full((1, 1, 1, 1), np.nan, np.float32)
    patch = ops.gather_patches(features, np.zeros((1, 1), np.int64))[0, 0]
    assert np.isnan(patch[4])
    assert (np.delete(patch, 4) == 0).all()


def test_any_strides() -> None:
    base = np.random.default_rng(0).normal(size=(2, 6, 8, 5)).astype(np.float32)
    index = np.random.default_rng(1).integers(0, 12, (7, 2)).T  # not contiguous either
    for view in [base.transpose(0, 3, 1, 2), base[:, ::2, ::-1, ::-1], np.broadcast_to(base[:, :1], (2, 9, 8, 5))]:
        np.testing.assert_array_equal(ops.gather_patches(view, index), reference(view, index))


def test_a_sparse_head_equals_the_dense_one() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 16, 12, 10, generator=generator)
    weight = torch.randn(8, 16, 3, 3, generator=generator)
    index = torch.randint(0, 120, (2, 20), generator=generator)
    dense = torch.nn.functional.conv2d(features.double(), weight.double(), padding=1).flatten(2)
    expected = dense.gather(2, index[:, None].expand(-1, 8, -1)).transpose(1, 2).numpy()
    sparse = ops.gather_patches(features, index).astype(np.float64) @ weight.double().reshape(8, -1).T.numpy()
    np.testing.assert_allclose(sparse, expected, rtol=0, atol=1e-12)  # both sums of 144 products in double


@pytest.mark.parametrize(
    ("features", "index", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 1), np.int64), ValueError, r"features must be \[N, F, H, W\]"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 1), np.int64), TypeError, "features must be float32 or"),
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros((1, 1), np.int64), ValueError, r"index must be \[N=2, K\], got"),
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, np.int64), ValueError, r"index must be \[N, K\], got \[2\]"),
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 1), np.int32), TypeError, "index must be int64, got int32"),
    ],
)
def test_errors_name_the_argument(
    features: np.ndarray, index: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"gather_patches: {message}"):
        ops.gather_patches(features, index)
