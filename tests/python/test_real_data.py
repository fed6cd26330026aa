"""On real annotations: run lengths equal pycocotools' byte for byte, and give the same average precision."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from centermask import ops
from centermask.coco import evaluate_coco

mask_utils = pytest.importorskip("pycocotools.mask")

pytestmark = [
    pytest.mark.skipif("CENTERMASK_DATA" not in os.environ, reason="CENTERMASK_DATA names no data"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools under NumPy 2
]
SETS = ("animals", "street", "coco_mini", "nuclei")


def read(name: str) -> dict[str, Any]:
    path = Path(os.environ.get("CENTERMASK_DATA", "")) / name / "val.json"
    if not path.is_file():
        pytest.skip(f"no {name} in CENTERMASK_DATA")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def peer_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """pycocotools' own run lengths of an annotation."""
    if isinstance(segmentation, list):
        merged: dict[str, Any] = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
        return merged
    if isinstance(segmentation["counts"], list):
        single: dict[str, Any] = mask_utils.frPyObjects(segmentation, height, width)
        return single
    return {"size": segmentation["size"], "counts": segmentation["counts"].encode()}


@pytest.mark.parametrize("name", SETS)
def test_every_val_mask_equals_pycocotools(name: str) -> None:
    document = read(name)
    sizes = {row["id"]: (row["height"], row["width"]) for row in document["images"]}
    assert document["annotations"]
    for row in document["annotations"]:
        height, width = sizes[row["image_id"]]
        segmentation = row["segmentation"]
        peer = peer_rle(segmentation, height, width)
        if isinstance(segmentation, list):
            ours = ops.rle_from_polygons(segmentation, height, width)
            assert ours["counts"] == peer["counts"], f"{name}: annotation {row['id']}: polygons"
        bitmap = ops.rle_decode(peer)
        assert np.array_equal(bitmap, mask_utils.decode(peer)), f"{name}: annotation {row['id']}: decode"
        again = mask_utils.encode(np.asfortranarray(bitmap))
        assert ops.rle_encode(bitmap)["counts"] == again["counts"], f"{name}: annotation {row['id']}: encode"
        assert ops.rle_area(peer) == mask_utils.area(peer)


def test_average_precision_from_our_run_lengths_equals_that_from_bitmaps() -> None:
    document = read("street")
    images = document["images"][:25]
    sizes = {row["id"]: (row["height"], row["width"]) for row in images}
    truth = {**document, "images": images}
    truth["annotations"] = [row for row in document["annotations"] if row["image_id"] in sizes]
    rng = np.random.default_rng(0)
    ours: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for row in truth["annotations"]:
        if row.get("iscrowd"):
            continue
        bitmap = ops.rle_decode(peer_rle(row["segmentation"], *sizes[row["image_id"]]))
        # A prediction that is a little off: the object shifted by some pixels.
        moved = np.roll(bitmap, tuple(rng.integers(-4, 5, 2)), axis=(0, 1))
        result = {"image_id": row["image_id"], "category_id": row["category_id"], "score": float(rng.random())}
        result["bbox"] = ops.rle_bbox([ops.rle_encode(moved)])[0].tolist()
        ours.append({**result, "segmentation": ops.rle_encode(moved)})
        peers.append({**result, "segmentation": mask_utils.encode(np.asfortranarray(moved))})
    left = evaluate_coco(truth, ours, iou_types=("bbox", "segm"))
    right = evaluate_coco(truth, peers, iou_types=("bbox", "segm"))
    assert left == right
    assert 0.2 < left["mask_ap"] < 0.99, "the shifts should cost something, or this test shows nothing"
