"""load_image: every kind of picture that users have, and every way in which one can be broken."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from centermask.preprocess import load_image

PICTURE = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)


def encode(extension: str, image: np.ndarray) -> bytes:
    good, data = cv2.imencode(extension, image)
    assert good
    return data.tobytes()


def with_jpeg_exif(data: bytes, orientation: int, thumbnail: bytes = b"") -> bytes:
    exif = b"Exif\0\0" + tiff_orientation("<", orientation) + thumbnail
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def tiff_orientation(order: str, orientation: int) -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    other = struct.pack(order + "HHII", 0x010F, 4, 1, 7)  # another tag in front
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(order + "H", 2) + other + entry + struct.pack(order + "I", 0)


def with_png_exif(data: bytes, orientation: int) -> bytes:
    content = tiff_orientation(">", orientation)
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    return data[:33] + chunk + data[33:]  # behind the signature and IHDR


ORIENTED = {
    1: PICTURE,
    2: PICTURE[:, ::-1],
    3: PICTURE[::-1, ::-1],
    4: PICTURE[::-1],
    5: PICTURE.transpose(1, 0, 2),
    6: np.rot90(PICTURE, -1),
    7: PICTURE.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(PICTURE, 1),
}


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tiff", ".ppm"])
def test_lossless_files(extension: str, tmp_path: Path) -> None:
    data = encode(extension, PICTURE)
    path = tmp_path / f"picture{extension}"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(load_image(source), PICTURE)


@pytest.mark.parametrize("extension", [".jpg", ".webp"])
def test_lossy_files_equal_opencv(extension: str) -> None:
    data = encode(extension, PICTURE)
    np.testing.assert_array_equal(load_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


def test_arrays() -> None:
    assert load_image(PICTURE) is PICTURE
    np.testing.assert_array_equal(load_image(PICTURE[..., ::-1], "rgb"), PICTURE)
    grey = PICTURE[..., 0]
    for source in (grey, grey[..., None]):
        for color in ("bgr", "rgb"):
            np.testing.assert_array_equal(load_image(source, color), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(load_image(PICTURE[::2, ::-1]), PICTURE[::2, ::-1])


def test_sixteen_bits() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    assert expected[0, -1] == 255
    np.testing.assert_array_equal(load_image(values)[..., 1], expected)
    np.testing.assert_array_equal(load_image(values.astype(">u2"))[..., 1], expected)
    np.testing.assert_array_equal(load_image(encode(".png", values))[..., 1], expected)
    wide = PICTURE.astype(np.uint16) * 257
    for extension in (".png", ".tiff"):
        np.testing.assert_array_equal(load_image(encode(extension, wide)), PICTURE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparency_lies_over_white(dtype: type) -> None:
    top = np.iinfo(dtype).max
    alpha = np.full((23, 31), top, dtype)
    alpha[0] = 0
    alpha[1] = round(top / 3)
    image = np.dstack([PICTURE.astype(dtype) * (top // 255), alpha])
    expected = PICTURE.astype(np.float64)
    expected[0] = 255
    expected[1] = PICTURE[1] / 3 + 255 * 2 / 3
    for source in (image, encode(".png", image)):
        loaded = load_image(source)
        np.testing.assert_array_equal(loaded[2:], PICTURE[2:])  # opaque: not one level off
        assert np.abs(loaded - expected).max() <= 0.5 + 1e-9  # rounded to a whole level
    np.testing.assert_array_equal(load_image(image[..., [2, 1, 0, 3]], "rgb"), load_image(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    np.testing.assert_array_equal(
        load_image(with_png_exif(encode(".png", PICTURE), orientation)), ORIENTED[orientation]
    )
    data = encode(".jpg", PICTURE)
    upright = load_image(with_jpeg_exif(data, orientation))
    assert upright.shape == ORIENTED[orientation].shape
    # Turned after decoding, hence equal to the decoded picture turned; compare through the inverse of the index map.
    plain = load_image(data)
    index = np.arange(23 * 31).reshape(23, 31, 1).repeat(3, 2)
    turned = {
        1: index,
        2: index[:, ::-1],
        3: index[::-1, ::-1],
        4: index[::-1],
        5: index.transpose(1, 0, 2),
        6: np.rot90(index, -1),
        7: index.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(index, 1),
    }[orientation]
    np.testing.assert_array_equal(upright, plain.reshape(-1, 3)[turned[..., 0]])


def test_broken_exif_is_ignored() -> None:
    content = tiff_orientation(">", 6)
    for damaged in (
        b"",
        b"MM",
        content[:7],
        content[:9],
        content[:-8],
        b"XX" + content[2:],
        content[:4] + b"\xff" * 30,
    ):
        chunk = struct.pack(">I", len(damaged)) + b"eXIf" + damaged + struct.pack(">I", zlib.crc32(b"eXIf" + damaged))
        data = encode(".png", PICTURE)
        np.testing.assert_array_equal(load_image(data[:33] + chunk + data[33:]), PICTURE)
    np.testing.assert_array_equal(load_image(with_png_exif(encode(".png", PICTURE), 77)), PICTURE)


def test_pil_images(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    rgb = np.ascontiguousarray(PICTURE[..., ::-1])
    image = pil.fromarray(rgb)
    np.testing.assert_array_equal(load_image(image), PICTURE)
    np.testing.assert_array_equal(
        load_image(image.convert("L")), np.asarray(image.convert("L"))[..., None].repeat(3, 2)
    )
    one_bit = image.convert("1")
    np.testing.assert_array_equal(load_image(one_bit), (np.asarray(one_bit) * np.uint8(255))[..., None].repeat(3, 2))
    palette = image.quantize(16)
    np.testing.assert_array_equal(load_image(palette), np.asarray(palette.convert("RGB"))[..., ::-1])
    clear = image.convert("RGBA")
    clear.putalpha(0)
    assert (load_image(clear) == 255).all()
    wide = pil.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(load_image(wide), PICTURE[..., :1].repeat(3, 2))
    with pytest.raises(ValueError, match="PIL mode F"):
        load_image(image.convert("F"))
    for orientation in range(1, 9):
        turned = pil.open(io.BytesIO(with_png_exif(encode(".png", PICTURE), orientation)))
        np.testing.assert_array_equal(load_image(turned), ORIENTED[orientation])
    path = tmp_path / "cut.png"
    path.write_bytes(encode(".png", PICTURE)[:700])
    with pytest.raises(ValueError, match=r"cut\.png: "):
        load_image(pil.open(path))


def test_jpegs_written_by_others_are_whole() -> None:
    pil = pytest.importorskip("PIL.Image")
    smooth = pil.fromarray(cv2.GaussianBlur(cv2.resize(PICTURE, (160, 120)), (9, 9), 0))
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"quality": 100, "subsampling": 0}):
        buffer = io.BytesIO()
        smooth.save(buffer, "JPEG", **options)
        data = buffer.getvalue()
        assert load_image(data).shape == (120, 160, 3)
        assert load_image(data + b"trailing \xff bytes").shape == (120, 160, 3)
        for part in (0.3, 0.7, 0.999):
            with pytest.raises(ValueError, match="image bytes: truncated JPEG"):
                load_image(data[: int(len(data) * part)])
    # The end mark of an embedded thumbnail is not the end of the picture.
    data = with_jpeg_exif(encode(".jpg", PICTURE), 1, thumbnail=encode(".jpg", PICTURE[:8, :8]))
    assert load_image(data).shape == PICTURE.shape
    with pytest.raises(ValueError, match="truncated JPEG"):
        load_image(data[:-40])


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused_by_name(extension: str, part: float, tmp_path: Path) -> None:
    data = encode(extension, PICTURE)
    path = tmp_path / f"half{extension}"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=rf"half\{extension}: (truncated|damaged)"):
        load_image(path)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.jpg: the file is empty"):
        load_image(empty)
    text = tmp_path / "text.png"
    text.write_text("a text is no picture")
    with pytest.raises(ValueError, match=r"text\.png: damaged, or not an image"):
        load_image(text)
    for zeros in (bytes(1), bytes(2000), b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match="image bytes: "):
            load_image(zeros)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(OSError, match=tmp_path.name):
        load_image(tmp_path)
    floating = encode(".tiff", PICTURE.astype(np.float32))
    with pytest.raises(ValueError, match="image must be uint8 or uint16, got float32"):
        load_image(floating)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "image must be uint8 or uint16, got float32"),
        (np.zeros((4, 4, 3), bool), TypeError, "image must be uint8 or uint16, got bool"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "image must be uint8 or uint16, got int64"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"\[H, W\] or \[H, W, 1, 3 or 4\], H and W >= 1, got \[3, 4, 5\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), ValueError, r"got \[1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \[0, 4, 3\]"),
        (np.zeros(4, np.uint8), ValueError, r"got \[4\]"),
        (None, TypeError, "must be a path, bytes, a NumPy array or a PIL image, got NoneType"),
        ([[1, 2]], TypeError, "must be a path, bytes, a NumPy array or a PIL image, got list"),
    ],
)
def test_wrong_arguments(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_image(source)


def test_extreme_sides() -> None:
    for shape in [(1, 1, 3), (10, 20000, 3), (20000, 10, 3)]:
        image = np.full(shape, 7, np.uint8)
        for extension in (".png", ".jpg"):
            loaded = load_image(encode(extension, image))
            assert loaded.shape == shape
            assert np.abs(loaded.astype(int) - 7).max() <= 1  # one level for the JPEG's colour transform
