"""What OpenCV does not tell about an encoded image: whether it is whole, and which way up it is."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# In the compressed data of a JPEG, 0xFF 0x00 is a data byte and D0..D7 are restart marks; any other mark ends a scan.
_JPEG_MARK = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_ORIENTATION_TAG = 0x0112


def truncation(data: bytes) -> str | None:
    """Why an image file is not whole, or None where nothing is missing (or the format is not JPEG, PNG or WebP).

    OpenCV fills the missing part of a JPEG with grey and, depending on its version, that of a PNG with black, and
    reports success. These three are checked by their own structure (ISO/IEC 10918-1, RFC 2083, RFC 9649).
    """
    if data.startswith(b"\xff\xd8"):
        return None if _jpeg_ends(data) else "truncated JPEG: its end mark is missing"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None if any(kind == b"IEND" for kind, _ in _png_chunks(data)) else "truncated PNG: its end is missing"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        expected = int.from_bytes(data[4:8], "little") + 8
        return None if len(data) >= expected else f"truncated WebP: {len(data)} of {expected} bytes"
    return None


def orientation(data: bytes) -> int:
    """The EXIF orientation, 1..8, of a PNG or WebP file; 1 where there is none. (OpenCV itself heeds a JPEG's.)"""
    chunks: Iterator[tuple[bytes, bytes]] = iter(())
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        chunks = _png_chunks(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        chunks = _riff_chunks(data)
    for kind, content in chunks:
        if kind in (b"eXIf", b"EXIF"):
            return _exif_orientation(content.removeprefix(b"Exif\0\0"))
    return 1


def _jpeg_ends(data: bytes) -> bool:
    position = 2
    while position + 4 <= len(data):
        mark = _JPEG_MARK.search(data, position)
        if mark is None:
            return False
        position = mark.end()
        kind = mark.group(1)[0]
        if kind == 0xD9:
            return True
        # All but the marks without content (start of image, TEM) skip over their segment: thumbnails inside it have
        # end marks of their own.
        if kind not in (0x01, 0xD8):
            position += int.from_bytes(data[position : position + 2], "big")
    return data.endswith(b"\xff\xd9") and position + 2 <= len(data)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the chunks that are whole."""
    position = 8
    while position + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if position + 12 + size > len(data):
            return
        yield kind, data[position + 8 : position + 8 + size] if kind == b"eXIf" else b""
        position += 12 + size


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        yield kind, data[position + 8 : position + 8 + size] if kind == b"EXIF" else b""
        position += 8 + size + size % 2


def _exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory of a TIFF structure; 1 where it has none or is broken."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == _ORIENTATION_TAG and kind == 3:
            (value,) = struct.unpack_from(order + "H", exif, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """Width, height and EXIF orientation of a JPEG file as it is stored; None if this is none, or broken."""
    if not data.startswith(b"\xff\xd8"):
        return None
    turned, position = 1, 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        kind = data[position + 1]
        if kind == 0xFF:  # filling
            position += 1
            continue
        size = int.from_bytes(data[position + 2 : position + 4], "big")
        if kind == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            turned = _exif_orientation(data[position + 10 : position + 2 + size])
        # Start of frame: C0..CF but for the tables C4, C8, CC.
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height, turned
        position += 2 + size
    return None
