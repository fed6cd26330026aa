"""Times the way from mask parameters to run lengths at the resolution of the image, beside other ways of it.

    python benchmarks/masks.py --threads 1 --json masks.json

100 instances at 1920x1080 whose boxes sum to 3 megapixels, 8 mask features (`shape`: 1 saliency map) at a quarter of a
512 px wide input. All end with COCO run lengths.

    ours        assemble_masks(output="rle")
    per box     the field of each box by NumPy, cv2.resize of it, threshold, pycocotools.encode of the frame
    full frame  as YOLO-like models are post-processed: all fields on the whole map by PyTorch, cropped to the boxes and
                resized to the image; threshold, pycocotools.encode

`memory` is the growth of the process, in one of its own, for 300 instances at 4000x3000, in megabytes; `IoU` is that of
ours with `per box`, all instances together, and shows that both do the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import interleaved
import numpy as np

from centermask import ops

STRIDE = 4


@dataclass
class Problem:
    """One image's instances, as the network gives them."""

    head: str
    image_size: tuple[int, int]
    scale: float  # image to input
    features: np.ndarray
    params: np.ndarray
    boxes: np.ndarray  # xyxy in input pixels

    def assemble(self, threads: int) -> list[Any]:
        matrix = [[self.scale, 0, 0], [0, self.scale, 0]]
        return ops.assemble_masks(
            self.features, self.params, self.boxes, head=self.head, image_size=self.image_size,  # type: ignore[call-overload]
            image_to_input=matrix, stride=STRIDE, box_margin=0.0, threads=threads,
        )  # fmt: skip


def smooth(rng: np.random.Generator, count: int, height: int, width: int, cell: int) -> np.ndarray:
    """Random maps without fine grain, so that masks are blobs and not noise."""
    coarse = rng.standard_normal((count, height // cell + 3, width // cell + 3)).astype(np.float32)
    y, x = np.arange(height) / cell, np.arange(width) / cell
    top, left = y.astype(int), x.astype(int)
    fy, fx = (y - top)[:, None].astype(np.float32), (x - left)[None].astype(np.float32)
    rows = coarse[:, top] * (1 - fy) + coarse[:, top + 1] * fy
    return np.ascontiguousarray(rows[:, :, left] * (1 - fx) + rows[:, :, left + 1] * fx)


def make_problem(head: str, instances: int, height: int, width: int, box_pixels: float, input_width: int) -> Problem:
    """Instances whose boxes sum to `box_pixels` of the image."""
    rng = np.random.default_rng(0)
    scale = input_width / width
    h, w = -(-int(height * scale) // STRIDE), input_width // STRIDE
    areas = rng.uniform(0.2, 1.8, instances)
    areas *= box_pixels / areas.sum()
    aspect = np.exp(rng.uniform(-0.7, 0.7, instances))
    sizes = np.stack([np.sqrt(areas * aspect), np.sqrt(areas / aspect)], 1)
    corners = rng.uniform(0, 1, (instances, 2)) * (np.array([width, height]) - sizes)
    boxes = (np.concatenate([corners, corners + sizes], 1) * scale).astype(np.float32)
    if head == "dynamic":
        features = smooth(rng, 8, h, w, 6)
        params = rng.normal(0, 0.5, (instances, 169)).astype(np.float32)
    else:
        features = smooth(rng, 1, h, w, 6) + 1
        params = smooth(rng, instances, 32, 32, 8).reshape(instances, -1) * 2 + 1
    return Problem(head, (height, width), scale, features, params, boxes)


def dynamic_field(problem: Problem, i: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    """Logits of instance i on the cells [y0, y1) x [x0, x1)."""
    weights, box = problem.params[i], problem.boxes[i]
    size = max(box[2] - box[0], box[3] - box[1], STRIDE)
    x = 2 * ((np.arange(x0, x1) + 0.5) * STRIDE - (box[0] + box[2]) / 2) / size
    y = 2 * ((np.arange(y0, y1) + 0.5) * STRIDE - (box[1] + box[3]) / 2) / size
    places = np.broadcast_arrays(x[None].astype(np.float32), y[:, None].astype(np.float32))
    value = np.concatenate([np.stack(places), problem.features[:, y0:y1, x0:x1]]).reshape(10, -1)
    value = np.maximum(weights[:80].reshape(8, 10) @ value + weights[152:160, None], 0)
    value = np.maximum(weights[80:144].reshape(8, 8) @ value + weights[160:168, None], 0)
    return (weights[144:152] @ value + weights[168]).reshape(y1 - y0, x1 - x0)


def shape_field(problem: Problem, i: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    import cv2

    box = problem.boxes[i] / STRIDE
    scale = 32 / (box[2:] - box[:2])
    matrix = np.array(
        [[scale[0], 0, (x0 + 0.5 - box[0]) * scale[0] - 0.5], [0, scale[1], (y0 + 0.5 - box[1]) * scale[1] - 0.5]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shape = cv2.warpAffine(
        problem.params[i].reshape(32, 32), matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return 1 / (1 + np.exp(-shape)) / (1 + np.exp(-problem.features[0, y0:y1, x0:x1])) - 0.5


def per_box(problem: Problem, encode: bool = True) -> list[Any]:
    import cv2
    from pycocotools import mask as coco

    field = dynamic_field if problem.head == "dynamic" else shape_field
    height, width = problem.image_size
    result = []
    frame = np.zeros((height, width), np.uint8, order="F")
    step = STRIDE / problem.scale  # image pixels of a cell
    for i, box in enumerate(problem.boxes):
        x0, y0 = (int(v) for v in box[:2] // STRIDE)
        x1, y1 = (int(v) for v in -(-box[2:] // STRIDE))
        values = field(problem, i, y0, min(y1, problem.features.shape[1]), x0, min(x1, problem.features.shape[2]))
        origin = round(x0 * step), round(y0 * step)
        size = max(round(values.shape[1] * step), 1), max(round(values.shape[0] * step), 1)
        left, top, right, bottom = (max(round(float(v)), 0) for v in box / problem.scale)
        resized = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        inside = resized[top - origin[1] : bottom - origin[1], left - origin[0] : right - origin[0]] > 0
        if encode:
            part = frame[top:bottom, left:right][: inside.shape[0], : inside.shape[1]]
            part[:] = inside[: part.shape[0], : part.shape[1]]
            result.append(coco.encode(frame))
            part[:] = 0
    return result


def full_frame(problem: Problem) -> list[Any]:
    import torch
    from pycocotools import mask as coco

    boxes, features = torch.from_numpy(problem.boxes), torch.from_numpy(problem.features)
    height, width = problem.image_size
    _, h, w = features.shape
    # A YOLO-like head: coefficients times prototypes, on the whole map; cropped to the boxes; resized to the image.
    coefficients = torch.from_numpy(problem.params[:, : features.shape[0]])
    fields = (coefficients @ features.flatten(1)).view(-1, 1, h, w)
    x, y = torch.arange(w)[None, None], torch.arange(h)[None, :, None]
    left, top, right, bottom = (boxes / STRIDE)[:, :, None, None].unbind(1)
    fields[:, 0] *= (x >= left) & (x < right) & (y >= top) & (y < bottom)
    frames = torch.nn.functional.interpolate(fields, (height, width), mode="bilinear", align_corners=False)[:, 0] > 0
    return [coco.encode(np.asfortranarray(frame)) for frame in frames.to(torch.uint8).numpy()]


def memory_of(head: str) -> float:
    problem = make_problem(head, 300, 3000, 4000, 40e6, 1024)
    small = make_problem(head, 2, 32, 32, 300, 32)
    small.assemble(1)
    return interleaved.peak_memory(lambda: problem.assemble(1))


def agreement(problem: Problem) -> float:
    """IoU with the way by OpenCV, whose places are rounded to whole pixels."""
    ours, theirs = problem.assemble(1), per_box(problem)
    pairs = list(zip(ours, theirs, strict=True))
    common = sum(ops.rle_area(ops.rle_merge([a, b], intersect=True)) for a, b in pairs)
    return float(common / sum(ops.rle_area(ops.rle_merge([a, b])) for a, b in pairs))


def main() -> None:
    parser = interleaved.parser_of(__doc__)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(memory_of(arguments.memory_of))
        return
    interleaved.set_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for head in ("dynamic", "shape"):
        problem = make_problem(head, 100, 1080, 1920, 3e6, 512)
        calls: dict[str, interleaved.Call] = {"ours": lambda problem=problem: problem.assemble(arguments.threads)}
        try:
            per_box(problem)
        except ImportError:
            pass
        else:
            calls["per box"] = lambda problem=problem: per_box(problem)
            calls["per box, no encoding"] = lambda problem=problem: per_box(problem, encode=False)
            try:
                full_frame(problem)
            except ImportError:
                pass
            else:
                calls["full frame"] = lambda problem=problem: full_frame(problem)
        command = [sys.executable, __file__, "--memory-of", head]
        memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        times = interleaved.interleave(calls, arguments.seconds)
        rows.append({"case": f"{head}, 100 instances, 1920x1080", "milliseconds": times, "memory": memory})
        rows[-1]["runs"] = sum(len(ops.rle_to_counts(mask)) for mask in problem.assemble(1))
        if "per box" in times:
            rows[-1]["mean IoU with per box"] = agreement(problem)
    interleaved.report(
        arguments, "masks", rows, {"memory": "memory, MB", "runs": "runs", "mean IoU with per box": "IoU"}
    )


if __name__ == "__main__":
    main()
