"""Centre decoding, patches for the sparse heads, and preprocessing: see `centermask.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from centermask import _core, _ops_cuda
from centermask._arrays import as_array
from centermask._cuda import cuda_library


class Centers(NamedTuple):
    """The peaks of a batch of heatmaps, best first; the fields are those that `decode_centers` describes."""

    scores: Any
    labels: Any
    index: Any  # tuple.index is never wanted here
    count: Any


def decode_centers(heatmap: Any, top_k: int, score_threshold: float = 0.0, *, threads: int | None = None) -> Centers:
    """The centres of a heatmap: 3x3 peaks, the best `top_k` over all classes (CenterNet, arXiv 1904.07850).

    A cell is a centre if it equals the largest value of its 3x3 neighbourhood in its own class map; plateaus are kept
    whole. NaN is never a centre and as a neighbour counts as -inf; -inf is a value like any other, of score 0.
    Centres are ordered by logit (largest first), then class, then index, on every device and for every number of
    threads.

    Args:
        heatmap: float32 or float64 [N, C, H, W], logits, any strides; NumPy or DLPack. On a CUDA device float32,
            float16 or bfloat16.
        top_k: K >= 1, the most centres of one image; may exceed the number of cells.
        score_threshold: In [0, 1]. Kept are centres with logit >= log(t / (1 - t)), computed once in double: a score
            within one rounding of the threshold may fall on either side. 0 keeps every peak.
        threads: None for all cores.

    Returns:
        scores [N, K] of the heatmap's dtype (on a CUDA device always float32), the sigmoid of the logits, in 0..1;
        labels int64 [N, K], the class; index int64 [N, K], the cell y * W + x; count int64 [N]. Rows after `count` hold
        0, -1 and 0. Arrays of the heatmap's library and device.

    Raises:
        TypeError: `heatmap` is no array of one of these dtypes.
        ValueError: A shape or a range is wrong.
    """
    library = cuda_library("decode_centers", heatmap=heatmap)
    if library is not None:
        return Centers(*_ops_cuda.decode_centers(library, heatmap, top_k, score_threshold))
    array = as_array(heatmap, "decode_centers", "heatmap")
    return Centers(*_core.decode_centers(array, top_k, score_threshold, threads or 0))


def gather_patches(features: Any, index: Any, *, threads: int | None = None) -> Any:
    """The zero-padded 3x3 neighbourhoods of chosen cells, one row for each.

    A 3x3 convolution with padding 1 and weight [O, F, 3, 3], evaluated at those cells alone, is
    `gather_patches(features, index) @ weight.reshape(O, -1).T`.

    Args:
        features: float32 or float64 [N, F, H, W], any strides; NumPy or DLPack. On a CUDA device float32, float16 or
            bfloat16.
        index: int64 [N, K], the cells y * W + x, as `decode_centers` gives them.
        threads: None for all cores.

    Returns:
        [N, K, F * 9] of the features' dtype, of their library and device; column f * 9 + ky * 3 + kx. An index outside
        0 .. H * W - 1 gives zeros.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape is wrong.
    """
    library = cuda_library("gather_patches", features=features, index=index)
    if library is not None:
        return _ops_cuda.gather_patches(library, features, index)
    feature_array = as_array(features, "gather_patches", "features")
    index_array = as_array(index, "gather_patches", "index")
    return _core.gather_patches(feature_array, index_array, threads or 0)


def preprocess(
    image: Any,
    image_to_input: ArrayLike,
    size: tuple[int, int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    swap_channels: bool = False,
    out: Any = None,
    threads: int | None = None,
) -> Any:
    """Resize, pad, normalise and HWC -> CHW in one pass: what cv2.warpAffine (INTER_LINEAR) does, but exactly.

    `out[c, v, u] = (I(x, y) - mean[c]) / std[c]` with (x, y) the image point that `image_to_input` takes to
    (u + 0.5, v + 0.5), and I the bilinear interpolation of the pixels. Every pixel beyond the image counts as 0,
    before normalising.

    Args:
        image: uint8 [H, W, 3], any strides; NumPy or DLPack.
        image_to_input: [2, 3], [[a, 0, t], [0, b, s]]: (x, y) of the image to (a * x + t, b * y + s) of the input.
            Pixel centres lie at half-integers in both.
        size: (height, width) of the input.
        mean: Three numbers in grey levels 0..255, in the order of the output's channels.
        std: Likewise, each > 0.
        swap_channels: Output channel c takes image channel 2 - c: BGR to RGB and back.
        out: float32 (on a CUDA device also float16) [3, height, width] to write into, adjacent pixels in each row; a
            NumPy array, or on a CUDA device one of the image's library. None for a new float32 array.
        threads: None for all cores.

    Returns:
        [3, height, width], `out` if that was given; otherwise float32, of the image's library and device.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape or a range is wrong.
    """
    library = cuda_library("preprocess", image=image, out=out)
    matrix = np.asarray(image_to_input, dtype=np.float64)
    if matrix.shape != (2, 3):
        raise ValueError(f"preprocess: image_to_input must be [2, 3], got {list(matrix.shape)}")
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"preprocess: mean and std must have 3 values, got {len(mean)} and {len(std)}")
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"preprocess: size must be (height >= 1, width >= 1), got {(height, width)}")
    if library is not None:
        transform = (matrix.ravel().tolist(), (height, width), list(mean), list(std), swap_channels)
        return _ops_cuda.preprocess(library, image, *transform, out)
    array = as_array(image, "preprocess", "image")
    if out is None:
        out = np.empty((3, height, width), np.float32)
    elif out.shape != (3, height, width):
        raise ValueError(f"preprocess: out must be [3, {height}, {width}], got {list(out.shape)}")
    elif not out.flags.writeable:
        raise ValueError("preprocess: out must be writeable, got a read-only array")
    _core.preprocess(array, matrix.ravel().tolist(), list(mean), list(std), swap_channels, out, threads or 0)
    return out
