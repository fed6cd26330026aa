"""Takes some pictures of some classes out of a COCO folder (train.json, val.json, images/) into a new one.

python examples/small_set.py ANIMALS OUT --classes elephant,turtle --pictures 100

Needs nothing but Python. `train` gets as many pictures of each class (the nearest to even), chosen by the SHA-1 of
their names, so that the same data gives the same choice everywhere; `val` keeps every picture that shows one of the
classes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

Coco = dict[str, Any]


def of_classes(coco: Coco, classes: list[str]) -> Coco:
    """The part of a COCO dictionary that shows these classes: pictures with at least one object of them."""
    categories = [row for row in coco["categories"] if row["name"] in classes]
    if len(categories) != len(classes):
        raise SystemExit(f"classes must be among {[row['name'] for row in coco['categories']]}, got {classes}")
    wanted = {row["id"] for row in categories}
    annotations = [row for row in coco["annotations"] if row["category_id"] in wanted]
    shown = {row["image_id"] for row in annotations}
    images = [row for row in coco["images"] if row["id"] in shown]
    return {**coco, "images": images, "annotations": annotations, "categories": categories}


def some(coco: Coco, count: int) -> Coco:
    """At most `count` pictures, the classes taking turns."""
    images = sorted(coco["images"], key=lambda row: hashlib.sha1(row["file_name"].encode()).digest())
    shows: dict[int, set[int]] = {row["id"]: set() for row in images}
    for row in coco["annotations"]:
        shows[row["image_id"]].add(row["category_id"])
    queues = [[row["id"] for row in images if key["id"] in shows[row["id"]]] for key in coco["categories"]]
    chosen: dict[int, None] = {}
    while len(chosen) < count and any(queues):
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen[queue.pop(0)] = None
    return {
        **coco,
        "images": [row for row in images if row["id"] in chosen],
        "annotations": [row for row in coco["annotations"] if row["image_id"] in chosen],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", required=True, help="names separated by commas")
    parser.add_argument("--pictures", type=int, default=100, help="of train (default: %(default)s)")
    options = parser.parse_args()
    classes = [name.strip() for name in options.classes.split(",")]
    (options.out / "images").mkdir(parents=True)
    for split in ("train", "val"):
        part = of_classes(json.loads((options.data / f"{split}.json").read_text()), classes)
        if split == "train":
            part = some(part, options.pictures)
        for row in part["images"]:
            target = options.out / "images" / row["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(options.data / "images" / row["file_name"], target)
        (options.out / f"{split}.json").write_text(json.dumps(part))
        names = {row["id"]: row["name"] for row in part["categories"]}
        objects = {name: sum(names[row["category_id"]] == name for row in part["annotations"]) for name in classes}
        print(f"{split}: {len(part['images'])} pictures, {', '.join(f'{n} {name}' for name, n in objects.items())}")


if __name__ == "__main__":
    main()
