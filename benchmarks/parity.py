"""Does an exported file give the instances of the checkpoint that it came from, on every picture of a folder?

    python benchmarks/parity.py CHECKPOINT MODEL.onnx DATA [--split val] [--json FILE]

Both go through the Predictor; only the network differs. Instances are paired by class and box IoU. Reported are the
pictures with other counts (leaving out scores within 1e-4 of the threshold), the largest difference of a box side,
and the mask IoU of all pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centermask import ops
from centermask.instances import Instances
from centermask.predictor import Predictor
from centermask.training.checkpoint import load_checkpoint
from centermask.training.data import load_datasets
from centermask.training.torch_network import TorchNetwork

THRESHOLD = 0.05
NEAR = 1e-4


def box_iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """IoU of boxes [n,4] and [m,4], xyxy -> [n,m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return np.asarray(inner / np.maximum(area[0][:, None] + area[1][None] - inner, 1e-9), np.float64)


def compare(torch_result: Instances, onnx_result: Instances) -> dict[str, Any]:
    """Differences on one picture."""
    sure = [int((r.scores > THRESHOLD + NEAR).sum()) for r in (torch_result, onnx_result)]
    possible = [int((r.scores > THRESHOLD - NEAR).sum()) for r in (torch_result, onnx_result)]
    same_count = sure[0] <= possible[1] and sure[1] <= possible[0]
    iou = box_iou(torch_result.boxes, onnx_result.boxes)
    iou[torch_result.labels[:, None] != onnx_result.labels[None]] = 0
    pairs = [(i, int(iou[i].argmax())) for i in range(len(torch_result)) if iou.shape[1] and iou[i].max() > 0.5]
    boxes = [float(np.abs(torch_result.boxes[i] - onnx_result.boxes[j]).max()) for i, j in pairs]
    masks = []
    if torch_result.masks is not None and onnx_result.masks is not None:
        left, right = torch_result.masks.rle, onnx_result.masks.rle
        for i, j in pairs:
            if left[i] == right[j]:
                masks.append(1.0)
            else:
                masks.append(float(ops.rle_iou([left[i]], [right[j]], [False])[0, 0]))
    return {"same_count": same_count, "found": len(torch_result), "paired": len(pairs), "boxes": boxes, "masks": masks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint).build()
    in_torch = Predictor(TorchNetwork(model), score_threshold=0.0)
    in_onnx = Predictor(arguments.model, score_threshold=0.0)
    dataset = load_datasets([arguments.data], arguments.split)
    rows = []
    for number in range(len(dataset)):
        image = dataset.image(number)
        rows.append(compare(in_torch(image, color="rgb"), in_onnx(image, color="rgb")))
    boxes = np.array([v for row in rows for v in row["boxes"]])
    masks = np.array([v for row in rows for v in row["masks"]])
    result = {
        "pictures": len(rows),
        "other_count": sum(not row["same_count"] for row in rows),
        "instances": sum(row["found"] for row in rows),
        "paired": sum(row["paired"] for row in rows),
        "box_difference_max_px": float(boxes.max(initial=0)),
        "mask_iou_min": float(masks.min(initial=1)),
        "share_of_masks_over_0.98": float((masks > 0.98).mean()) if len(masks) else 1.0,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))
    good = (
        result["other_count"] == 0
        and result["box_difference_max_px"] <= 0.5
        and result["share_of_masks_over_0.98"] >= 0.99
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
