"""Small COCO data sets for the tests."""

from __future__ import annotations

import json

import cv2
import numpy as np

TRIANGLE = [4.0, 4.0, 30.0, 6.0, 12.0, 28.0]


def coco_folder(root, images, annotations, categories=("cat", "dog"), split="train"):
    """Writes a data set of 40 x 32 pictures. `images`: rows or counts; categories: names (ids 1..) or rows."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    if isinstance(images, int):
        images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 32} for i in range(1, images + 1)]
    for row in images:
        path = root / "images" / str(row.get("file_name"))
        if not path.exists():
            cv2.imwrite(str(path), np.full((32, 40, 3), 60, np.uint8))
    rows = [c if isinstance(c, dict) else {"id": i, "name": c} for i, c in enumerate(categories, start=1)]
    content = {"images": images, "annotations": annotations, "categories": rows}
    (root / f"{split}.json").write_text(json.dumps(content))
    return root


def annotation(key, image=1, category=1, **changes):
    row = {"id": key, "image_id": image, "category_id": category, "iscrowd": 0}
    row |= {"segmentation": [TRIANGLE], "bbox": [4.0, 4.0, 26.0, 24.0], "area": 286.0}
    return {k: v for k, v in (row | changes).items() if v is not None}
