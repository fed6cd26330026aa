"""Finds small objects in large pictures: overlapping tiles are predicted one by one and joined by supervision.

pip install "centermask[cpu,viz]"      (supervision 0.27 or newer)
python examples/tiling.py large.jpg tiled.jpg --tile 512
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import supervision as sv

from centermask import Predictor


def find_in_tiles(predictor: Predictor, image: np.ndarray, tile: int, overlap: int) -> sv.Detections:
    """All objects of a picture (uint8 BGR [h, w, 3]); of two that lie on each other the better one is kept.

    An object at the edge of a tile is also found cut in two. Its part lies inside the whole, so that the overlap is
    measured against the smaller of both (IOS); `overlap` should be as large as the objects are.
    """
    slicer = sv.InferenceSlicer(
        callback=lambda part: predictor(np.ascontiguousarray(part)).to_supervision(),
        slice_wh=(tile, tile),
        overlap_wh=(overlap, overlap),
        overlap_metric="ios",
        iou_threshold=0.5,
    )
    return slicer(image)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("out")
    parser.add_argument("--model", default="default", help="default: %(default)s")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile in pixels (default: %(default)s)")
    parser.add_argument("--overlap", type=int, default=128, help="of two tiles, in pixels (default: %(default)s)")
    options = parser.parse_args()
    image = cv2.imread(options.image)
    if image is None:
        raise SystemExit(f"{options.image}: not a picture that OpenCV can read")
    found = find_in_tiles(Predictor(options.model), image, options.tile, options.overlap)
    labels = [f"{name} {score:.2f}" for name, score in zip(found.data.get("class_name", ()), found.confidence)]  # noqa: B905
    drawn = sv.MaskAnnotator().annotate(image.copy(), found)
    drawn = sv.LabelAnnotator().annotate(drawn, found, labels)
    cv2.imwrite(options.out, drawn)
    print(f"{len(found)} objects, drawn into {options.out}")


if __name__ == "__main__":
    main()
