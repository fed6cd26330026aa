"""The YOLO-seg layout: `data.yaml` with names and splits, pictures in `images/`, a text file for each in `labels/`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
SPLIT_KEYS = ("train", "val", "valid", "test")


def read_yaml(text: str) -> dict[str, Any]:
    """The part of YAML in which data sets are described, so that no package is needed for a list of names.

    Top-level keys with scalars, lists and mappings of scalars, in block or flow form, quoted or not; block scalars
    (`|`, `>`) as text. Numbers stay text but for the keys of mappings. What is nested deeper is left out.

    Raises:
        ValueError: A line is neither `key: value` nor part of one.
    """
    result: dict[str, Any] = {}
    lines = [(number, _without_comment(line)) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line.strip() and line.strip() not in ("---", "...")]
    position = 0
    while position < len(lines):
        number, line = lines[position]
        position += 1
        key, value = _key_and_value(line, number)
        if line[:1].isspace():
            raise ValueError(f"line {number}: unexpected indentation: {line.strip()!r:.60}")
        block = []
        while position < len(lines) and (lines[position][1][:1].isspace() or lines[position][1].startswith("- ")):
            block.append(lines[position])
            position += 1
        if value[:1] in ("[", "{"):
            result[key] = _flow(" ".join([value, *(line.strip() for _, line in block)]))
        elif value[:1] in ("|", ">"):
            result[key] = "\n".join(line for _, line in block)
        elif value or not block:
            # A flow sequence may also end at the margin, which this cannot tell from a new key.
            result[key] = _scalar(value)
        else:
            result[key] = _block(block)
    return result


def _without_comment(line: str) -> str:
    quote = ""
    for position, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and (position == 0 or line[position - 1] in " [{,:"):
            quote = sign
        elif sign == "#" and (position == 0 or line[position - 1].isspace()):
            return line[:position].rstrip()
    return line.rstrip()


def _key_and_value(line: str, number: int) -> tuple[str, str]:
    match = re.match(r"""\s*("[^"]*"|'[^']*'|[^\s:\[\]{},][^:]*?)\s*:(?:\s+(.*))?$""", line)
    if match is None:
        raise ValueError(f"line {number}: expected `key: value`, got {line.strip()!r:.60}")
    return str(_scalar(match.group(1))), (match.group(2) or "").strip()


def _block(lines: Sequence[tuple[int, str]]) -> Any:
    margin = len(lines[0][1]) - len(lines[0][1].lstrip())
    own = [(number, line.strip()) for number, line in lines if len(line) - len(line.lstrip()) == margin]
    if all(line.startswith("- ") for _, line in own):
        return [_scalar(line[2:].strip()) for _, line in own]
    return {key: _scalar(value) for key, value in (_key_and_value(line, number) for number, line in own)}


def _flow(text: str) -> Any:
    parts = re.findall(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,\[\]{}])+""", text)
    parts = [part.strip() for part in parts if part.strip()]
    if text.startswith("["):
        return [_scalar(part) for part in parts]
    return {key: _scalar(value) for key, value in (_key_and_value(part, 0) for part in parts)}


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    return text


def class_names(content: Mapping[str, Any]) -> dict[int, str]:
    """Index -> name from `names`, a list or a mapping from the index.

    Raises:
        ValueError: There are no names, or an index is no number.
    """
    names = content.get("names")
    if isinstance(names, list) and names:
        return dict(enumerate(map(str, names)))
    if isinstance(names, dict) and names:
        if not all(str(key).isdecimal() for key in names):
            raise ValueError(f"names must be numbered 0, 1, ..., got {list(names)!r:.60}")
        return {int(key): str(name) for key, name in names.items()}
    raise ValueError("it has no `names`")


def places(content: Mapping[str, Any], yaml: Path, key: str) -> tuple[Path, ...]:
    """The folders (or text files that list pictures) of a split, as far as they exist."""
    value = content.get(key)
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    root = yaml.parent / str(content.get("path") or ".")
    found = []
    for entry in map(str, values):
        # Roboflow writes ../train/images beside the folder train; ultralytics resolves that the same way.
        options = [base / part for part in (entry, entry.removeprefix("../")) for base in (root, yaml.parent)]
        found += [next((option for option in options if entry and option.exists()), None)]
    return tuple(path for path in found if path is not None)


def pictures(entries: Sequence[Path]) -> Iterator[Path]:
    """The pictures of a split, in the order of their names in each folder, or of the list."""
    for entry in entries:
        if entry.is_dir():
            yield from sorted(path for path in entry.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        else:
            for line in entry.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    yield entry.parent / line.strip()


def label_path(picture: Path) -> Path:
    """The text file of a picture: the last folder `images` becomes `labels`; without one it lies beside."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(path: Path, image_id: int, folder: Path) -> list[dict[str, Any]]:
    """The annotation rows of one picture, in COCO's form but with coordinates as fractions (`scaled` maps them).

    A line is `class x y x y ...`. With four numbers it is a box (centre and size), and its mask is missing. Numbers
    that are none stay text, for the checks of the reader to name. Ids are `<file>:<line>`.

    Args:
        path: May be missing: a picture with nothing on it.
        image_id: For the rows.
        folder: What the ids' paths are relative to.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    name = path.relative_to(folder) if path.is_relative_to(folder) else path
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        values = [_number(word) for word in words[1:]]
        row: dict[str, Any] = {
            "id": f"{name}:{number}",
            "image_id": image_id,
            "category_id": int(words[0]) if words[0].isdecimal() else words[0],
            "iscrowd": 0,
            "fractions": True,
        }
        if len(values) == 4:
            x, y, w, h = values
            numbers = all(isinstance(value, float) for value in values)
            row["bbox"] = [x - w / 2, y - h / 2, w, h] if numbers else values  # type: ignore[operator]
        else:
            row["segmentation"] = [values]
        rows.append(row)
    return rows


def scaled(row: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """A row of `read_labels` in pixels of a picture; other rows as they are.

    Products are rounded to 1e-9 pixel, which undoes the division that made the fractions.
    """
    result = dict(row)
    if not result.pop("fractions", False):
        return result
    for key in ("bbox", "segmentation"):
        if key in result:
            flat = result[key][0] if key == "segmentation" else result[key]
            sides = (width, height)
            pixels = [
                round(value * sides[i % 2], 9) if isinstance(value, float) else value for i, value in enumerate(flat)
            ]
            result[key] = [pixels] if key == "segmentation" else pixels
    return result


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word
