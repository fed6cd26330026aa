"""Whether two programs found the same instances: compares COCO result files with masks.

    python tests/python/compare_results.py FIRST.json SECOND.json [--score S]

Results are paired within picture and category, greedily by mask overlap. Differences that rounding makes are allowed: see
the arguments of `differences`.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from typing import Any

import numpy as np

from centermask import coco, ops

Result = dict[str, Any]


def differences(
    first: list[Result],
    second: list[Result],
    *,
    score: float = 0.0,
    score_error: float = 2e-3,
    box_error: float = 0.5,
    mask_iou: float = 0.985,
) -> list[str]:
    """What differs between two lists of COCO results, in words; empty if they are the same instances.

    Args:
        first: Results with `segmentation` as compressed RLE.
        second: Likewise.
        score: The threshold that both were made with. A result within `score_error` of it may be missing on one side.
        score_error: Largest difference of scores. Another processor or compiler adds in another order; through fifty
            layers, float32's 6e-8 becomes about 1e-5 of a logit. The rest is room for pictures that were shrunk by
            another program, whose grey levels may differ by one.
        box_error: Largest difference of a corner's coordinate, in pixels.
        mask_iou: Least overlap of masks; a mask of 10 x 10 pixels may not differ by more than one.
    """
    found: list[str] = []
    groups: defaultdict[tuple[int, int], tuple[list[Result], list[Result]]] = defaultdict(lambda: ([], []))
    for side, results in enumerate((first, second)):
        for result in results:
            groups[result["image_id"], result["category_id"]][side].append(result)
    for (image_id, category_id), (ours, theirs) in sorted(groups.items()):
        where = f"picture {image_id}, category {category_id}"
        free = list(range(len(theirs)))
        overlaps = _overlaps(ours, theirs)
        for i, result in enumerate(ours):
            best = max(free, key=lambda j: overlaps[i, j], default=None)
            if best is None or overlaps[i, best] < 0.5:
                if result["score"] > score + score_error:
                    found.append(f"{where}: only the first has {_text(result)}")
                continue
            free.remove(best)
            other = theirs[best]
            off = np.abs(_corners(result) - _corners(other)).max()
            gap = abs(result["score"] - other["score"])
            if gap > score_error or off > box_error or overlaps[i, best] < mask_iou:
                found.append(
                    f"{where}: {_text(result)} and {_text(other)} differ: score by {gap:.2g}, box by {off:.2g} pixels, "
                    f"mask IoU {overlaps[i, best]:.4f}"
                )
        found += [
            f"{where}: only the second has {_text(theirs[j])}"
            for j in free
            if theirs[j]["score"] > score + score_error
        ]
    return found


def _overlaps(ours: list[Result], theirs: list[Result]) -> Any:
    """Mask IoU, float64 [n, m]; boxes' place is not looked at here."""
    if not ours or not theirs:
        return np.zeros((len(ours), len(theirs)))
    return ops.rle_iou([result["segmentation"] for result in ours], [result["segmentation"] for result in theirs])


def _corners(result: Result) -> Any:
    x, y, width, height = result["bbox"]
    return np.array([x, y, x + width, y + height])


def _text(result: Result) -> str:
    return f"score {result['score']:.4f} at {[round(value, 1) for value in result['bbox']]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--score", type=float, default=0.0, help="threshold that both were made with")
    options = parser.parse_args()
    first, second = coco.read_results(options.first), coco.read_results(options.second)
    found = differences(first, second, score=options.score)
    print("\n".join(found) or f"the same {len(first)} instances")
    if not first:
        print("no instances: nothing was compared")
    return 1 if found or not first else 0


if __name__ == "__main__":
    sys.exit(main())
