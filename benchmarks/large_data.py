"""How long large data takes, and how much memory: `validate` on many pictures, evaluation of many masks.

    python benchmarks/large_data.py validate [--pictures 100000] [--folder DIR]
    python benchmarks/large_data.py eval [--pictures 5000] [--instances 100] [--classes 10] [--engine auto] [--boundary]

`validate` writes a made-up data set (small JPEGs of smooth noise, seven polygons each) into DIR, unless it is there,
and runs the command on it in a process of its own. `eval` makes polygons and results that lie a little beside them, and
computes average precision; the time is that of `evaluate_coco` alone. CPU seconds are those of all threads: on a
machine with other work they say more than the time on the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from centermask import ops
from centermask.coco import evaluate_coco

SIZE = (48, 64)
OBJECTS = 7
CORNERS = 12
PICTURE = (480, 640)


def rings(rng: np.random.Generator, count: int, height: int, width: int, corners: int) -> np.ndarray:
    """[count, corners, 2] outlines of blobs inside a picture."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = rng.uniform(0.02, 0.12, (count, 1)) * width * rng.uniform(0.8, 1.2, (count, corners))
    center = rng.uniform(0.15, 0.85, (count, 1, 2)) * (width, height)
    points = center + radius[:, :, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return points.clip(0, (width - 0.01, height - 0.01))


def box(points: np.ndarray) -> list[float]:
    low, high = points.min(axis=0), points.max(axis=0)
    return [float(value) for value in (*low, *(high - low))]


def write_set(folder: Path, pictures: int) -> None:
    """The data set that `validate` looks at, all of it in `train`."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    height, width = SIZE
    with open(folder / "train.part", "w") as file:
        rows = ",".join(
            json.dumps({"id": n, "file_name": f"{n}.jpg", "width": width, "height": height}) for n in range(pictures)
        )
        file.write(f'{{"images":[{rows}],"categories":[{{"id":1,"name":"a"}},{{"id":2,"name":"b"}}],"annotations":[')
        for n in range(pictures):
            coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / "images" / f"{n}.jpg"), cv2.resize(coarse, (width, height)))
            for k, points in enumerate(rings(rng, OBJECTS, height, width, CORNERS)):
                row = {
                    "id": n * OBJECTS + k, "image_id": n, "category_id": 1 + k % 2, "iscrowd": 0, "bbox": box(points),
                    "segmentation": [points.ravel().tolist()],
                }  # fmt: skip
                file.write(("," if n or k else "") + json.dumps(row))
        file.write("]}")
    (folder / "train.part").rename(folder / "train.json")


def validate(pictures: int, folder: Path) -> None:
    if not (folder / "train.json").exists():
        write_set(folder, pictures)
    size = (folder / "train.json").stat().st_size / 1e6
    print(f"{pictures} pictures, {pictures * OBJECTS} annotations, a file of {size:.0f} MB", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "centermask.cli", "validate", str(folder)], stderr=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"peak memory {used.ru_maxrss / 2**20:.2f} GiB, {used.ru_utime + used.ru_stime:.0f} CPU seconds, "
        f"{time.perf_counter() - start:.0f} seconds on the clock"
    )


def results_and_truth(pictures: int, instances: int, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO dictionary, and as many results: most of them near an object, with scores that say so."""
    rng = np.random.default_rng(0)
    height, width = PICTURE
    truth: dict[str, Any] = {
        "images": [{"id": n, "width": width, "height": height} for n in range(1, pictures + 1)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, classes + 1)],
        "annotations": [],
    }
    found = []
    for n in range(1, pictures + 1):
        labels = rng.integers(1, classes + 1, instances).tolist()
        real = rings(rng, instances, height, width, 24)
        noise = rng.uniform(0, 12, (instances, 1, 1))
        moved = rng.normal(size=real.shape) / 4 + rng.normal(size=(instances, 1, 2))
        near = (real + noise * moved).clip(0, None)
        for k in range(instances):
            masks = [ops.rle_from_polygons([part[k].ravel().tolist()], height, width) for part in (real, near)]
            common = {"image_id": n, "category_id": labels[k]}
            truth["annotations"].append(
                common
                | {"id": len(found) + 1, "iscrowd": 0, "area": float(ops.rle_area([masks[0]])[0])}
                | {"bbox": box(real[k]), "segmentation": masks[0]}
            )
            score = float(np.exp(-noise[k, 0, 0] / 6) * rng.uniform(0.6, 1))
            found.append(common | {"bbox": box(near[k]), "segmentation": masks[1], "score": score})
    return truth, found


def evaluate(options: argparse.Namespace) -> None:
    truth, found = results_and_truth(options.pictures, options.instances, options.classes)
    print(f"{options.pictures} pictures, {len(found)} results, {options.classes} classes", flush=True)
    kinds = ("bbox", "segm", "boundary") if options.boundary else ("bbox", "segm")
    cpu, clock = time.process_time(), time.perf_counter()
    figures = evaluate_coco(truth, found, iou_types=kinds, engine=options.engine)
    print(
        f"{' and '.join(kinds)} by {options.engine}: {time.process_time() - cpu:.0f} CPU seconds, "
        f"{time.perf_counter() - clock:.0f} on the clock; box AP {figures['box_ap']:.6f}, "
        f"mask AP {figures['mask_ap']:.6f}; "
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("validate", "eval"))
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--folder", type=Path, help="of the made-up set (default: a temporary one)")
    parser.add_argument("--instances", type=int, default=100, help="results, and objects, of a picture")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--engine", choices=("auto", "pycocotools", "faster-coco-eval"), default="auto")
    parser.add_argument("--boundary", action="store_true", help="boundary AP too")
    options = parser.parse_args()
    if options.what == "eval":
        options.pictures = options.pictures or 5000
        evaluate(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        validate(options.pictures or 100_000, options.folder or Path(temporary) / "set")


if __name__ == "__main__":
    main()
