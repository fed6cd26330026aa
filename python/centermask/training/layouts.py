"""Where the splits of a data set lie: four layouts, told apart by their files, read into one form."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from centermask.training import yolo

Layout = Literal["plain", "coco", "roboflow", "yolo"]

ROBOFLOW_FILE = "_annotations.coco.json"
HELD_OUT = 0.15
"""Share of the training pictures that stand in for a missing val split."""
HELD_OUT_MOST = 5000

_ALIASES = {"valid": "val", "validation": "val"}


class DataError(ValueError):
    """A data set that cannot be used at all; the message names the file and the cause."""


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a data set.

    Attributes:
        name: `train`, `val`, `test`, or the JSON file's own name.
        layout: Which of the four.
        path: The JSON file, or `data.yaml`.
        folder: The data set's folder.
        places: Where its pictures lie, in the order in which they are tried. YOLO: folders or lists of pictures.
    """

    name: str
    layout: Layout
    path: Path
    folder: Path
    places: tuple[Path, ...]

    def picture(self, file_name: str) -> Path:
        """The path of a picture; where there is none, the first place that was tried.

        Raises:
            OSError: The name cannot be looked up (too long, or in a folder that may not be entered).
        """
        options = [place / file_name for place in self.places]
        return next((option for option in options if option.is_file()), options[0])


def find_splits(data: Path) -> dict[str, Split]:
    """The splits of a data set, by name; `valid` and `val2017` are called `val`.

    The layouts, in the order in which they are looked for:

    - plain: `train.json`, `val.json`, ... and `images/` (or the pictures beside);
    - coco: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`, any year or none;
    - roboflow: `train/_annotations.coco.json` with the pictures beside it;
    - yolo: `data.yaml` (or another .yaml with `names`), `images/`, `labels/`.

    Args:
        data: The folder; or the `.yaml` file of the YOLO layout.

    Raises:
        DataError: There is no such folder, or a `data.yaml` cannot be understood.
    """
    data = Path(data)
    if data.suffix.lower() in (".yaml", ".yml") and data.is_file():
        return _yolo(data)
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    plain = {
        path.stem: Split(path.stem, "plain", path, data, (data / "images", data))
        for path in sorted(data.glob("*.json"))
    }
    for name in [name for name in plain if _ALIASES.get(name, name) not in plain]:
        plain[_ALIASES[name]] = replace(plain.pop(name), name=_ALIASES[name])
    if plain.keys() & {"train", "val", "test"}:
        return plain
    found: dict[str, Split] = {}
    for path in sorted(data.glob("annotations/instances_*.json")):
        stem = path.stem.removeprefix("instances_")
        name = re.sub(r"_?\d{4}$", "", stem)
        pictures = tuple(data / part for part in (stem, f"images/{stem}", name, f"images/{name}", "images", "."))
        _add(found, Split(_ALIASES.get(name, name), "coco", path, data, pictures))
    for path in [] if found else sorted(data.glob(f"*/{ROBOFLOW_FILE}")):
        name = path.parent.name
        _add(found, Split(_ALIASES.get(name, name), "roboflow", path, data, (path.parent,)))
    if found:
        return found
    for path in sorted([*data.glob("*.yaml"), *data.glob("*.yml")], key=lambda path: (path.stem != "data", path.name)):
        if path.stem == "data" or re.search(r"(?m)^names\s*:", path.read_text(encoding="utf-8", errors="replace")):
            return _yolo(path)
    return plain


def _add(found: dict[str, Split], split: Split) -> None:
    if split.name in found:
        raise DataError(f"{split.path}: the split {split.name!r} is given twice; the other is {found[split.name].path}")
    found[split.name] = split


def _yolo(path: Path) -> dict[str, Split]:
    try:
        content = yolo.read_yaml(path.read_text(encoding="utf-8"))
        yolo.class_names(content)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a YOLO data set: {error}") from error
    found: dict[str, Split] = {}
    for key in yolo.SPLIT_KEYS:
        where = yolo.places(content, path, key)
        if where:
            _add(found, Split(_ALIASES.get(key, key), "yolo", path, path.parent, where))
    return found


def split_name(splits: Mapping[str, Split], name: str) -> str:
    """What a split that is asked for is called here: `valid` is `val`, unless there is one called `valid`."""
    return name if name in splits else _ALIASES.get(name, name)


def find_split(data: Path, name: str) -> Split:
    """One split by its name, or by its file's.

    Raises:
        DataError: It is not there; the message tells which are.
    """
    splits = find_splits(data)
    name = split_name(splits, name)
    if name not in splits:
        missing = Path(data) / f"{name}.json"
        raise DataError(f"{missing}: no such file; splits in this folder: {', '.join(sorted(splits)) or 'none'}")
    return splits[name]


def read_document(split: Split) -> dict[str, Any]:
    """A split as a COCO document. Its lists are checked to be lists, what is in them is not.

    The rows of YOLO labels hold fractions (`yolo.scaled`), as the pictures' sizes are not known yet.

    Raises:
        DataError: Not readable, or not of COCO's form.
    """
    if split.layout == "yolo":
        return _yolo_document(split)
    path = split.path
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not COCO: expected an object, got {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: not COCO: expected a list named {key!r}, got {type(content.get(key)).__name__}")
    if split.layout == "roboflow":
        used = {row.get("category_id") for row in content["annotations"] if isinstance(row, dict)}
        content["categories"] = without_placeholder(content["categories"], used)
    return content


def without_placeholder(categories: Sequence[Any], used: set[Any]) -> list[Any]:
    """Roboflow's exports begin with an unused category 0, the supercategory of all others; it is no class."""
    rows = [row for row in categories if isinstance(row, dict)]
    parents = {row.get("supercategory") for row in rows if row.get("id") != 0}
    return [
        row
        for row in categories
        if not (isinstance(row, dict) and row.get("id") == 0 and 0 not in used and row.get("name") in parents)
    ]


def yolo_categories(split: Split) -> list[dict[str, Any]]:
    """The classes of a YOLO split as COCO's categories."""
    names = yolo.class_names(yolo.read_yaml(split.path.read_text(encoding="utf-8")))
    return [{"id": index, "name": name} for index, name in sorted(names.items())]


def _yolo_document(split: Split) -> dict[str, Any]:
    images, annotations = [], []
    for number, picture in enumerate(yolo.pictures(split.places), start=1):
        images.append({"id": number, "file_name": str(picture.absolute())})
        annotations += yolo.read_labels(yolo.label_path(picture), number, split.folder)
    return {"images": images, "annotations": annotations, "categories": yolo_categories(split)}


def held_out(images: Sequence[Any], annotations: Sequence[Any]) -> set[Any]:
    """The ids of the pictures that stand in for a missing val split: always the same for the same file names.

    Pictures are ranked by the SHA-1 of their path in the data set; the first 15 % are taken, and then the first ones
    of each class that is not among them yet and occurs in two pictures or more.
    Roboflow's augmented copies of one photograph (`name.rf.<hash>.jpg`) stay together.
    """
    groups: dict[str, list[Any]] = {}
    rows = [row for row in images if isinstance(row, dict) and isinstance(row.get("file_name"), str)]
    # YOLO's paths are absolute: what lies above all pictures is no part of their names.
    whole = [str(Path(row["file_name"]).parent) for row in rows if Path(row["file_name"]).is_absolute()]
    above = os.path.commonpath(whole) if whole else ""
    for row in rows:
        if row["file_name"]:
            path = Path(row["file_name"])
            path = path.relative_to(above) if path.is_absolute() else path
            stem = re.sub(r"\.rf\.[0-9a-f]+$", "", path.with_suffix("").as_posix())
            groups.setdefault(stem, []).append(row.get("id"))
    classes: dict[Any, set[Any]] = {}
    for row in annotations:
        if isinstance(row, dict) and isinstance(row.get("image_id"), (int, str)):
            classes.setdefault(row["image_id"], set()).add(str(row.get("category_id")))
    ranked = sorted(groups, key=lambda stem: hashlib.sha1(stem.encode()).digest())
    of_group = {stem: set().union(*(classes.get(key, set()) for key in groups[stem])) for stem in ranked}
    left: dict[Any, int] = {}
    for stem in ranked:
        for name in of_group[stem]:
            left[name] = left.get(name, 0) + 1

    def take(stem: str) -> None:
        chosen.append(stem)
        seen.update(of_group[stem])
        for name in of_group[stem]:
            left[name] -= 1

    chosen: list[str] = []
    seen: set[Any] = set()
    wanted = min(HELD_OUT_MOST, max(1, round(HELD_OUT * len(ranked)))) if len(ranked) > 1 else 0
    # A class keeps at least one picture to learn from.
    for stem in ranked:
        if len(chosen) < wanted and all(left[name] > 1 for name in of_group[stem]):
            take(stem)
    for stem in ranked:
        if of_group[stem] - seen and stem not in chosen and all(left[name] > 1 for name in of_group[stem]):
            take(stem)
    return {key for stem in chosen for key in groups[stem]}


def part_of(document: Mapping[str, Any], keys: set[Any], *, inside: bool) -> dict[str, Any]:
    """The document's pictures that are among `keys` (or are not), with their annotations."""

    def wanted(row: Any, name: str) -> bool:
        key = row.get(name) if isinstance(row, dict) else None
        return (isinstance(key, (int, str)) and key in keys) == inside

    return {
        **document,
        "images": [row for row in document["images"] if wanted(row, "id")],
        "annotations": [row for row in document["annotations"] if wanted(row, "image_id")],
    }
