"""The same pictures and objects written in each of the layouts that data sets come in."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from centermask import ops

SIZES = ((90, 120), (64, 100), (77, 93), (120, 81), (80, 80), (101, 67))
NAMES = ("cat", "dog")
LAYOUTS = ("plain", "coco", "roboflow", "yolo")


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, list[tuple[int, list[float]]]]:
    """A noisy picture with polygons on it, and these as (class, flat ring)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 80, (height, width, 3)).astype(np.uint8)
    objects = []
    for n in range(1 + seed % 3):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7 + n))
        center = rng.uniform(0.3, 0.7, 2) * (width, height)
        ring = center + (0.1 + 0.15 * rng.random((len(angles), 1))) * min(height, width) * np.stack(
            [np.cos(angles), np.sin(angles)], axis=1
        )
        ring = ring.round(2)
        color = (0, 200, 40) if n % 2 else (220, 30, 180)
        cv2.fillPoly(image, [np.rint(ring - 0.5).astype(np.int32)], color)
        objects.append((n % 2, ring.ravel().tolist()))
    return image, objects


def scenes(split: str) -> list[tuple[str, np.ndarray, list[tuple[int, list[float]]]]]:
    start, sizes = (0, SIZES) if split == "train" else (50, SIZES[:3])
    return [(f"{split}_{n}.png", *scene(start + n, *size)) for n, size in enumerate(sizes)]


def document(split: str, *, first_category: int = 1, masks: str = "polygons") -> dict:
    """As COCO; `masks`: polygons, rle (compressed) or counts (not compressed)."""
    images, annotations = [], []
    for number, (name, image, objects) in enumerate(scenes(split), start=1):
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, flat in objects:
            ring = np.array(flat).reshape(-1, 2)
            (x0, y0), (x1, y1) = ring.min(axis=0), ring.max(axis=0)
            segmentation: object = [flat]
            if masks != "polygons":
                rle = ops.rle_from_polygons([flat], height, width)
                counts = rle["counts"].decode() if masks == "rle" else [int(n) for n in ops.rle_to_counts(rle)]
                segmentation = {"size": [height, width], "counts": counts}
                x0, y0, w, h = (float(v) for v in ops.rle_bbox(rle))
                x1, y1 = x0 + w, y0 + h
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + first_category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "segmentation": segmentation,
                }
            )
    categories = [{"id": i + first_category, "name": name, "supercategory": "animals"} for i, name in enumerate(NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, layout: str, splits: tuple[str, ...] = ("train", "val"), *, masks: str = "polygons") -> Path:
    """Writes the data set in one of `LAYOUTS`; YOLO knows polygons alone."""
    for split in splits:
        stem = {"coco": f"{split}2017", "roboflow": "valid" if split == "val" else split}.get(layout, split)
        pictures = {"plain": "images", "coco": stem, "roboflow": stem, "yolo": f"{split}/images"}[layout]
        (root / pictures).mkdir(parents=True, exist_ok=True)
        for name, image, _ in scenes(split):
            cv2.imwrite(str(root / pictures / name), image)
        if layout == "plain":
            (root / f"{split}.json").write_text(json.dumps(document(split, masks=masks)))
        elif layout == "coco":
            (root / "annotations").mkdir(exist_ok=True)
            path = root / "annotations" / f"instances_{stem}.json"
            path.write_text(json.dumps(document(split, masks=masks)))
        elif layout == "roboflow":
            content = document(split, masks=masks)
            content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
            (root / stem / "_annotations.coco.json").write_text(json.dumps(content))
        else:
            write_yolo_labels(root / split, split)
    if layout == "yolo":
        keys = "".join(f"{split}: ../{split}/images\n" for split in splits)
        (root / "data.yaml").write_text(f"# made by a test\n{keys}\nnc: 2\nnames: ['cat', 'dog']\n")
    return root


def write_yolo_labels(folder: Path, split: str) -> None:
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    for name, image, objects in scenes(split):
        height, width = image.shape[:2]
        lines = []
        for label, flat in objects:
            fractions = (np.array(flat).reshape(-1, 2) / (width, height)).ravel().tolist()
            lines.append(" ".join([str(label), *map(repr, fractions)]))
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
