"""Whether two programs found the same instances: compares COCO files with masks, as `centermask predict --coco` writes.

    python tests/python/compare_results.py FIRST.json SECOND.json [--score S]

Results are paired within picture and category, each with the nearest box. Differences that rounding makes are allowed:
see the arguments of `differences`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from centermask import ops

Result = dict[str, Any]


def differences(
    first: list[Result],
    second: list[Result],
    *,
    score: float = 0.0,
    score_error: float = 2e-3,
    box_error: float = 1e-3,
    mask_error: float = 0.015,
    outline_error: float = 3e-5,
) -> list[str]:
    """What differs between two lists of COCO results, in words; empty if they are the same instances.

    Args:
        first: Results with `segmentation` as compressed RLE.
        second: Likewise.
        score: The threshold that both were made with. A result within `score_error` of it may be missing on one side.
        score_error: Largest difference of scores. Another processor or compiler adds in another order; through fifty
            layers, float32's 6e-8 becomes about 1e-5 of a logit. The rest is room for pictures that were shrunk by
            another program, whose grey levels may differ by one.
        box_error: Largest difference of a corner's coordinate, as a share of the picture's longest side: a third of a
            pixel of a network's input of 320.
        mask_error: Largest share of the pixels of either mask that only one of both has; two pixels are always allowed.
        outline_error: How far the whole outline (its box's) may move, as a share of the picture's longest side: a
            hundredth of a pixel of a network's input of 320. In small masks of large pictures that is more than
            `mask_error`.
    """
    found: list[str] = []
    groups: defaultdict[tuple[int, int], tuple[list[Result], list[Result]]] = defaultdict(lambda: ([], []))
    for side, results in enumerate((first, second)):
        for result in results:
            groups[result["image_id"], result["category_id"]][side].append(result)
    for (image_id, category_id), (ours, theirs) in sorted(groups.items()):
        where = f"picture {image_id}, category {category_id}"
        free = list(range(len(theirs)))
        for result in ours:
            most = box_error * max(result["segmentation"]["size"])
            best = min(free, key=lambda j: _distance(result, theirs[j]), default=None)
            if best is None or _distance(result, theirs[best]) > most:
                if result["score"] > score + score_error:
                    found.append(f"{where}: only the first has {_text(result)}")
                continue
            free.remove(best)
            gap = abs(result["score"] - theirs[best]["score"])
            only_one, either = _pixels(result, theirs[best])
            moved = outline_error * max(result["segmentation"]["size"]) * 2 * sum(result["bbox"][2:])
            if gap > score_error or only_one > max(2.5, mask_error * either, moved):
                found.append(
                    f"{where}: {_text(result)} and {_text(theirs[best])} differ: score by {gap:.2g}, mask by "
                    f"{only_one:.0f} of {either:.0f} pixels"
                )
        found += [
            f"{where}: only the second has {_text(theirs[j])}" for j in free if theirs[j]["score"] > score + score_error
        ]
    return found


def read(path: str | Path) -> list[Result]:
    """The annotations of a COCO file."""
    annotations: list[Result] = json.loads(Path(path).read_bytes())["annotations"]
    return annotations


def _distance(first: Result, second: Result) -> float:
    """Largest difference of a corner's coordinate."""
    corners = [np.array([x, y, x + width, y + height]) for x, y, width, height in (first["bbox"], second["bbox"])]
    return float(np.abs(corners[0] - corners[1]).max())


def _pixels(first: Result, second: Result) -> tuple[float, float]:
    """How many pixels one of two masks alone has, and how many there are in either."""
    masks = first["segmentation"], second["segmentation"]
    total = float(sum(ops.rle_area(list(masks))))
    overlap = float(ops.rle_iou([masks[0]], [masks[1]])[0, 0])
    common = overlap * total / (1 + overlap)
    return total - 2 * common, total - common


def _text(result: Result) -> str:
    return f"score {result['score']:.4f} at {[round(value, 1) for value in result['bbox']]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--score", type=float, default=0.0, help="threshold that both were made with")
    options = parser.parse_args()
    first, second = read(options.first), read(options.second)
    found = differences(first, second, score=options.score)
    print("\n".join(found) or f"the same {len(first)} instances")
    if not first:
        print("no instances: nothing was compared")
    return 1 if found or not first else 0


if __name__ == "__main__":
    sys.exit(main())
