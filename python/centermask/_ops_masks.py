"""Instance masks at the resolution of the image: see `centermask.ops`."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from centermask import _core, _ops_cuda
from centermask._arrays import as_optional_array
from centermask._cuda import Library, cuda_library
from centermask._ops_rle import Rle, masks_of_runs, rings_of_runs

_THRESHOLDS = {"dynamic": 0.0, "shape": 0.5}

Bitmap = tuple[int, int, NDArray[np.bool_]]
Polygons = list[NDArray[np.float64]]


@overload
def assemble_masks(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    *,
    image_size: tuple[int, int],
    head: Literal["dynamic", "shape"] = ...,
    image_to_input: ArrayLike | None = ...,
    labels: Any = ...,
    stride: int = ...,
    threshold: float | None = ...,
    box_margin: float = ...,
    output: Literal["rle"] = ...,
    threads: int | None = ...,
) -> list[Rle]: ...
@overload
def assemble_masks(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    *,
    image_size: tuple[int, int],
    head: Literal["dynamic", "shape"] = ...,
    image_to_input: ArrayLike | None = ...,
    labels: Any = ...,
    stride: int = ...,
    threshold: float | None = ...,
    box_margin: float = ...,
    output: Literal["bitmap"],
    threads: int | None = ...,
) -> list[Bitmap]: ...
@overload
def assemble_masks(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    *,
    image_size: tuple[int, int],
    head: Literal["dynamic", "shape"] = ...,
    image_to_input: ArrayLike | None = ...,
    labels: Any = ...,
    stride: int = ...,
    threshold: float | None = ...,
    box_margin: float = ...,
    output: Literal["polygon"],
    threads: int | None = ...,
) -> list[Polygons]: ...
@overload
def assemble_masks(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    *,
    image_size: tuple[int, int],
    head: Literal["dynamic", "shape"] = ...,
    image_to_input: ArrayLike | None = ...,
    labels: Any = ...,
    stride: int = ...,
    threshold: float | None = ...,
    box_margin: float = ...,
    output: Literal["packed"],
    threads: int | None = ...,
) -> Any: ...
def assemble_masks(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    *,
    image_size: tuple[int, int],
    head: Literal["dynamic", "shape"] = "dynamic",
    image_to_input: ArrayLike | None = None,
    labels: Any = None,
    stride: int = 4,
    threshold: float | None = None,
    box_margin: float = 0.1,
    output: Literal["rle", "bitmap", "polygon", "packed"] = "rle",
    threads: int | None = None,
) -> list[Rle] | list[Bitmap] | list[Polygons] | Any:
    """The masks of I instances, evaluated only inside their boxes and straight at the resolution of the image.

    Each instance has a value v on the cells of the mask features; cell (i, j) has its centre at the input point
    (x, y) = stride * (j + 0.5, i + 0.5). A pixel is inside the mask where v, bilinearly interpolated at the pixel's
    centre (the map's edge cells continue beyond it), is >= threshold, and its centre lies in the box grown by
    `box_margin` * (width, height) on each side. Pixel centres are at half-integers in the image and in the input.

    * `head="dynamic"` (CondInst, arXiv 2003.05664): v is the logit of 1x1 convolutions 10-8-8-1 with ReLU in between,
      on rel_x, rel_y and 8 mask features; rel = 2 * (cell centre - box centre) / max(box width, box height, stride).
      P = 169: weights [8, 10], [8, 8], [1, 8], then biases 8, 8, 1.
    * `head="shape"` (CenterMask, arXiv 2004.04446): v = sigmoid(shape) * sigmoid(saliency). P = 1024: logits of the
      32x32 shape (y, x), stretched over the box, sampled bilinearly and clamped at its edge. Saliency logits are the
      mask features, M = 1, or M = number of classes, chosen by `labels`.

    A value that is not finite is outside, and so is all that is interpolated from it. A box without area, or that is
    not finite, gives an empty mask, as does a negative label where labels matter.

    On a CUDA device the masks are computed there. Dictionaries, crops and polygons are made of them on the CPU, which
    waits for their run lengths: twice, once for their number. "packed" stays on the device, and nothing waits.

    Args:
        mask_features: float32 [M, h, w], any strides; NumPy or DLPack, as are the following, all on one device. On a
            CUDA device also float16 or bfloat16.
        mask_params: float32 [I, P], on a CUDA device also float16 or bfloat16.
        boxes: float32 [I, 4], xyxy in input pixels.
        image_size: (H, W) of the image, in pixels.
        head: "dynamic" or "shape".
        image_to_input: [2, 3], [[a, 0, t], [0, b, s]] with a, b > 0: (x, y) of the image to (a * x + t, b * y + s) of
            the input. None: the image is the input.
        labels: int64 [I], in 0..M-1; needed for "shape" with M > 1 alone.
        stride: Input pixels from one cell to the next.
        threshold: Of v. None: 0 (a logit) for "dynamic", 0.5 (a probability) for "shape".
        box_margin: >= 0.
        output: "rle", "bitmap", "polygon" or "packed".
        threads: None for all cores. The result does not depend on it.

    Returns:
        One entry for each instance. "rle": a dictionary as `rle_encode` gives it. "bitmap": (x0, y0, bool [h, w]),
        the mask in the part of the image that the grown box covers ([0, 0] where it covers none). "polygon": rings as
        `rle_to_polygons` gives them, in image pixels; none for an empty mask. "packed": not a list, but uint8
        [I, H, (W + 7) // 8], eight pixels of a row in each, the leftmost in the lowest bit (`numpy.unpackbits` with
        bitorder="little"); of the arguments' library and device.

    Raises:
        TypeError: A dtype is wrong.
        ValueError: A shape, a range or a name is wrong.
    """
    if head not in _THRESHOLDS:
        raise ValueError(f'assemble_masks: head must be "dynamic" or "shape", got {head!r}')
    if output not in ("rle", "bitmap", "polygon", "packed"):
        raise ValueError(f'assemble_masks: output must be "rle", "bitmap", "polygon" or "packed", got {output!r}')
    matrix = np.eye(2, 3) if image_to_input is None else np.asarray(image_to_input, np.float64)
    if matrix.shape != (2, 3):
        raise ValueError(f"assemble_masks: image_to_input must be [2, 3], got {list(matrix.shape)}")
    height, width = (operator.index(size) for size in image_size)
    settings: tuple[Any, ...] = (
        head,
        height,
        width,
        matrix.ravel().tolist(),
        stride,
        _THRESHOLDS[head] if threshold is None else threshold,
        box_margin,
    )
    values = {"mask_features": mask_features, "mask_params": mask_params, "boxes": boxes, "labels": labels}
    library = cuda_library("assemble_masks", **values)
    if library is not None and output == "packed":
        return _ops_cuda.assemble_packed(library, values, settings, (height, width))
    if library is not None:
        runs, offsets = _ops_cuda.assemble_runs(library, values, settings, width)
        if output == "bitmap":
            return _crops(library, boxes, runs, offsets, settings)
    else:
        arrays: list[Any] = [as_optional_array(value, "assemble_masks", name) for name, value in values.items()]
        arrays += [*settings, threads or 0]
        if output in ("bitmap", "packed"):
            bitmaps = _bitmaps(*_core.assemble_bitmaps(*arrays))
            return bitmaps if output == "bitmap" else _packed(bitmaps, height, width)
        runs, offsets = _core.assemble_masks(*arrays)
    if output == "rle":
        return masks_of_runs(runs, offsets, height, width)
    return [rings_of_runs(runs[begin:end], height, width) for begin, end in pairwise(offsets.tolist())]


def _bitmaps(windows: NDArray[np.int64], pixels: NDArray[np.uint8]) -> list[Bitmap]:
    bitmaps: list[Bitmap] = []
    at = 0
    for x, y, width, height in windows.tolist():
        part = pixels[at : at + width * height].reshape(height, width)
        bitmaps.append((x, y, part.view(np.bool_)))
        at += width * height
    return bitmaps


def _packed(bitmaps: list[Bitmap], height: int, width: int) -> NDArray[np.uint8]:
    packed = np.zeros((len(bitmaps), height, (width + 7) // 8), np.uint8)
    whole = np.zeros((height, width), np.bool_)
    for row, (x, y, bitmap) in zip(packed, bitmaps, strict=True):
        part = whole[y : y + bitmap.shape[0], x : x + bitmap.shape[1]]
        part[:] = bitmap
        row[:] = np.packbits(whole, axis=1, bitorder="little")
        part[:] = False
    return packed


def _crops(
    library: Library,
    boxes: Any,
    runs: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    settings: tuple[Any, ...],
) -> list[Bitmap]:
    _, height, width, matrix, _, _, box_margin = settings
    windows = _core.mask_windows(_ops_cuda.boxes_on_host(library, boxes), height, width, matrix, box_margin)
    bitmaps: list[Bitmap] = []
    for i, (x, y, w, h) in enumerate(windows.tolist()):
        own = runs[offsets[i] : offsets[i + 1]]
        whole = _core.rle_decode(own, np.array([0, len(own)]), height, width)[0]
        bitmaps.append((x, y, whole[y : y + h, x : x + w].astype(np.bool_)))
    return bitmaps
