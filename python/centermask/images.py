"""Reading pictures: files and in-memory forms become uint8 BGR, or a clear error that names the file and the cause."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

ImageInput: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | PilImage"

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"})


class ImageError(ValueError):
    """A picture cannot be read. The message names the file and the cause."""


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Reads a picture file as uint8 BGR `[H, W, 3]`, upright (its EXIF rotation is applied).

    Grey becomes three equal channels, transparency is dropped, and of 16-bit channels the upper 8 bits are kept.

    Raises:
        ImageError: The file is missing, empty, truncated, or in no format that OpenCV reads.
    """
    name = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened ({error.strerror})") from None
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes)")
    # Decoders fill what a truncated file lacks with grey and only print a warning: results from it would be wrong silently.
    if data[:2] == b"\xff\xd8" and not _jpeg_is_complete(data):
        raise ImageError(f"{name}: truncated JPEG, the end-of-image marker is missing ({len(data)} bytes)")
    if data[:8] == b"\x89PNG\r\n\x1a\n" and b"IEND\xaeB`\x82" not in data:
        raise ImageError(f"{name}: truncated PNG, the IEND chunk is missing ({len(data)} bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # such as more than 2^30 pixels
        raise ImageError(f"{name}: OpenCV refuses it: {' '.join(str(error).split())}") from None
    if image is None:
        raise ImageError(f"{name}: not a picture that OpenCV can read ({len(data)} bytes, starts with {data[:8]!r})")
    return np.asarray(image, np.uint8)


def _jpeg_is_complete(data: bytes) -> bool:
    """Walks the marker segments (ITU-T T.81, B.1) up to the end-of-image marker; thumbnails inside segments do not count."""
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:  # entropy-coded data, or junk between segments: on to the next marker
            position = data.find(b"\xff", position)
            if position < 0:
                return False
            continue
        marker = data[position + 1]
        if marker == 0xD9:
            return True
        if marker == 0xFF:
            position += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # stuffed byte, TEM, restart markers: no length follows
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def as_bgr(image: ImageInput, *, color: Literal["bgr", "rgb"] = "bgr") -> NDArray[np.uint8]:
    """Any accepted form of a picture as uint8 BGR `[H, W, 3]`. An array that is one already is not copied.

    Args:
        image: Path; uint8 or uint16 array `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`; or PIL image
            (its EXIF rotation is applied, as with files).
        color: Channel order of an array. Files and PIL images know theirs.

    Raises:
        ImageError: A file cannot be read.
        TypeError: The type or dtype is none of these.
        ValueError: The shape is none of these, or the picture has no pixels.
    """
    if color not in ("bgr", "rgb"):
        raise ValueError(f"color must be 'bgr' or 'rgb', got {color!r}")
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, np.ndarray):
        return _array_as_bgr(image, color)
    if hasattr(image, "getexif") and hasattr(image, "convert"):
        return _pil_as_bgr(image)
    raise TypeError(f"image must be a path, a uint8 array or a PIL image, got {type(image).__name__}")


def _array_as_bgr(image: NDArray[Any], color: str) -> NDArray[np.uint8]:
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"image must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with H, W > 0, got {list(image.shape)}"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise TypeError(f"image must be uint8 (0..255) or uint16 (0..65535), got {image.dtype}")
    if channels == 1:
        grey = image.reshape(image.shape[:2])
        return np.repeat(grey[:, :, None], 3, axis=2)
    image = image[:, :, :3]
    return np.ascontiguousarray(image[:, :, ::-1] if color == "rgb" else image)


def _pil_as_bgr(image: PilImage) -> NDArray[np.uint8]:
    from PIL import ImageOps  # the caller has PIL: it gave us one of its images

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        return _array_as_bgr(np.asarray(upright, np.uint16), "rgb")
    return _array_as_bgr(np.asarray(upright.convert("RGB")), "rgb")


def write_image(path: str | os.PathLike[str], image: NDArray[np.uint8]) -> None:
    """Writes BGR `[H, W, 3]` in the format that the suffix names; the file appears complete or not at all.

    Raises:
        ValueError: OpenCV has no encoder for the suffix.
        OSError: The folder cannot be written to.
    """
    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        ok, data = cv2.imencode(path.suffix, image, options)
    except cv2.error:
        ok = False
    if not ok:
        raise ValueError(f"{path}: OpenCV cannot write {path.suffix or 'a file without suffix'!r}; use .jpg or .png")
    write_atomically(path, data.tobytes())


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes to a temporary file in the same folder and renames it: nobody ever sees half a file."""
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """A hidden name beside `path`, of the same suffix (encoders choose the format by it) and of this process alone."""
    path = Path(path)
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
