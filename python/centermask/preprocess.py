"""From a picture in any form to the network's input: `load_image`, then `prepare`. No torch."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask import _image_file, ops
from centermask.config import PreprocessConfig

Color: TypeAlias = Literal["bgr", "rgb"]
Image: TypeAlias = NDArray[np.uint8]

_PADDING = 32
"""Sides of the input are multiples of this, the stride of the deepest features."""

_COLOR_CODES = {("bgr", 1): cv2.COLOR_GRAY2BGR, ("rgb", 1): cv2.COLOR_GRAY2BGR, ("rgb", 3): cv2.COLOR_RGB2BGR}

# EXIF orientation -> (transpose, flip rows, flip columns), in this order.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def input_transform(
    image_size: tuple[int, int], config: PreprocessConfig
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Where a picture lies in the network's input.

    - `fit`: the longest side is scaled to `config.size`, up or down; then both sides are padded to multiples of 32.
    - `fixed`: the test-time geometry of CenterNet's fix_res (github.com/xingyizhou/CenterNet): the longest side
      scaled to a square of `config.size`. CenterNet maps pixel indices, which makes its picture half a pixel larger
      on one side than on the other; the shift here is that of the same samples.
    - `fixed_index`: the same samples, but coordinates as CenterNet reads them, by the middles of picture and input
      alone. They lie up to half a pixel beside the samples; a network that was trained so has learned it.
    - `keep`: CenterNet's keep_res: no scaling, sides padded to `(side | 31) + 1`, a shift by whole pixels.

    Args:
        image_size: (height, width) of the picture, each >= 1.
        config: Its `size` and `policy` are used.

    Returns:
        image_to_input, float64 [2, 3], axis-aligned, from image pixels to input pixels (pixel centres at
        half-integers in both); and the (height, width) of the input.

    Raises:
        ValueError: A side is not >= 1, or the policy is unknown.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image must be at least 1x1 pixels, got {height}x{width}")
    if config.size < 1:
        raise ValueError(f"preprocess size must be >= 1, got {config.size}")
    scale = 1.0
    if config.policy == "fit":
        scale = config.size / max(height, width)
        content = [max(1, round(side * scale)) for side in (width, height)]
        padded = [math.ceil(side / _PADDING) * _PADDING for side in content]
        # Whole pixels of padding, so that a picture which already has the right size is copied and not blurred; what
        # rounding took from the content or added to it is shared by both its sides.
        shift = [
            (outer - inner) // 2 + (inner - side * scale) / 2
            for outer, inner, side in zip(padded, content, (width, height), strict=True)
        ]
    elif config.policy == "fixed":
        scale = config.size / max(height, width)
        padded = [config.size, config.size]
        shift = [config.size / 2 + 0.5 - scale * (side / 2 + 0.5) for side in (width, height)]
    elif config.policy == "fixed_index":
        scale = config.size / max(height, width)
        padded = [config.size, config.size]
        shift = [config.size / 2 - scale * side / 2 for side in (width, height)]
    elif config.policy == "keep":
        padded = [(side | 31) + 1 for side in (width, height)]
        shift = [float(outer // 2 - side // 2) for outer, side in zip(padded, (width, height), strict=True)]
    else:
        raise ValueError(f"preprocess policy must be fit, fixed, fixed_index or keep, got {config.policy!r}")
    image_to_input = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float64)
    return image_to_input, (padded[1], padded[0])


def prepare(
    image: Image, config: PreprocessConfig, color: Color = "bgr", *, threads: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Resizes, pads and normalises a picture for the network.

    Bilinear samples of a picture that becomes less than half as large would miss most of its pixels and show patterns
    that are not there (aliasing). Under `fit` it is therefore first averaged down by a whole factor; the other policies
    stay as published.

    Args:
        image: uint8 [H, W, 3], any strides.
        config: Size, policy, channel order, mean and standard deviation that the network was trained with.
        color: Channel order of `image`.
        threads: None for all cores.

    Returns:
        The input, float32 [3, h, w]; and image_to_input, float64 [2, 3]: see `input_transform`. What lies beyond the
        picture is black before normalising.

    Raises:
        TypeError: `image` is not uint8.
        ValueError: Its shape is not [H >= 1, W >= 1, 3], or a setting is wrong.
    """
    _check_color(color)
    if image.ndim != 3:
        raise ValueError(f"preprocess: image must be [H >= 1, W >= 1, 3], got {list(image.shape)}")
    image_to_input, size = input_transform((image.shape[0], image.shape[1]), config)
    matrix = image_to_input
    if config.policy == "fixed_index":
        matrix, _ = input_transform((image.shape[0], image.shape[1]), replace(config, policy="fixed"))
    if config.policy == "fit" and image_to_input[0, 0] <= 0.5 and image.dtype == np.uint8:
        image, matrix = _average_down(image, image_to_input)
    network_input = ops.preprocess(
        image,
        matrix,
        size,
        mean=config.mean,
        std=config.std,
        swap_channels=color != config.color,
        threads=threads,
    )
    return network_input, image_to_input


def _average_down(image: Image, image_to_input: NDArray[np.float64]) -> tuple[Image, NDArray[np.float64]]:
    """The picture shrunk by the largest whole factor that leaves it no smaller than in the input, and its matrix."""
    height, width = image.shape[:2]
    factor = int(1 / image_to_input[0, 0] + 1e-6)
    small_size = (-(-width // factor), -(-height // factor))
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    matrix = image_to_input.copy()
    matrix[0, 0] *= width / small_size[0]
    matrix[1, 1] *= height / small_size[1]
    return small.astype(np.uint8, copy=False), matrix


def load_image(source: Any, color: Color = "bgr") -> Image:
    """A picture in any form, as OpenCV would hold it: uint8 [H, W, 3], BGR.

    Grey becomes three equal channels. What is transparent is laid over white, as viewers show it. 16 bits are scaled
    to 8 (65535 becomes 255). The EXIF orientation of JPEG, PNG and WebP files is applied, and that of PIL images.

    Args:
        source: A path; the bytes of an image file, in any format that OpenCV reads; an array [H, W], [H, W, 1],
            [H, W, 3] or [H, W, 4] of uint8 or uint16; or a PIL image.
        color: Channel order of an array. Files and PIL images know their own.

    Returns:
        The picture. It shares memory with `source` where that is a uint8 BGR array.

    Raises:
        FileNotFoundError: There is no such file. (Other OSErrors when it cannot be opened.)
        ValueError: The file is empty, truncated or no image; the array has a wrong shape. Names file and cause.
        TypeError: The array has another dtype, or `source` is of none of these kinds.
    """
    _check_color(color)
    if isinstance(source, np.ndarray):
        return _to_bgr8(source, color, "image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), "image bytes")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        return _decode(path.read_bytes(), str(path))
    if all(hasattr(source, name) for name in ("convert", "mode", "getbands", "getexif")):
        return _from_pil(source)
    raise TypeError(f"image must be a path, bytes, a NumPy array or a PIL image, got {type(source).__name__}")


def _check_color(color: str) -> None:
    if color not in ("bgr", "rgb"):
        raise ValueError(f"color must be 'bgr' or 'rgb', got {color!r}")


def _decode(data: bytes, name: str) -> Image:
    if not data:
        raise ValueError(f"{name}: the file is empty (0 bytes)")
    cause = _image_file.truncation(data)
    if cause is not None:
        raise ValueError(f"{name}: {cause}")
    # Only IMREAD_UNCHANGED keeps an alpha channel, and it ignores EXIF; JPEG has no alpha.
    jpeg = data.startswith(b"\xff\xd8")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH if jpeg else cv2.IMREAD_UNCHANGED
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{name}: OpenCV cannot decode it: {str(error).strip()}") from error
    if decoded is None:
        raise ValueError(f"{name}: damaged, or not an image in a format that OpenCV reads ({len(data)} bytes)")
    try:
        image = _to_bgr8(decoded, "bgr", name)
    except TypeError as error:  # about an array; here it is the file that is at fault
        raise ValueError(str(error)) from error
    return image if jpeg else _upright(image, _image_file.orientation(data))


def _from_pil(source: Any) -> Image:
    name = getattr(source, "filename", "") or "PIL image"
    try:
        orientation = source.getexif().get(0x0112, 1)
        if source.mode.startswith("I;16"):
            image = _to_bgr8(np.asarray(source).astype(np.uint16), "bgr", name)
        elif source.mode in ("I", "F"):
            raise ValueError(f"{name}: PIL mode {source.mode} has no defined white; convert it to L or RGB")
        else:
            alpha = "A" in source.getbands() or "a" in source.getbands() or "transparency" in source.info
            image = _to_bgr8(np.asarray(source.convert("RGBA" if alpha else "RGB")), "rgb", name)
    except (OSError, SyntaxError) as error:  # PIL reads lazily: a damaged file shows here
        raise ValueError(f"{name}: {error}") from error
    return _upright(image, orientation)


def _to_bgr8(array: NDArray[Any], color: Color, name: str) -> Image:
    """Any number of channels and 8 or 16 bits to uint8 [H, W, 3] BGR."""
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise TypeError(f"{name}: image must be uint8 or uint16, got {array.dtype}; scale it to 0..255 and convert")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"{name}: image must be [H, W] or [H, W, 1, 3 or 4], H and W >= 1, got {list(array.shape)}")
    if array.dtype.itemsize == 2:
        # 65535 = 255 * 257: round(value / 257) in integers.
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    image: Image = array
    if image.shape[2] == 4:
        image = _over_white(image)
    code = _COLOR_CODES.get((color, image.shape[2]))
    return image if code is None else cv2.cvtColor(np.ascontiguousarray(image), code).astype(np.uint8, copy=False)


def _over_white(image: Image) -> Image:
    alpha = image[:, :, 3:]
    if (alpha == 255).all():
        return np.ascontiguousarray(image[:, :, :3])
    opaque = alpha.astype(np.uint16)
    blended: Image = ((image[:, :, :3] * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)
    return blended


def _upright(image: Image, orientation: int) -> Image:
    transpose, flip_rows, flip_columns = _ORIENTATIONS.get(orientation, _ORIENTATIONS[1])
    if transpose:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
