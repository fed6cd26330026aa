"""Times preprocessing beside OpenCV and NumPy: resize, pad, normalise, HWC to CHW.

    python benchmarks/preprocess.py --threads 1 --json preprocess.json

`OpenCV + NumPy` is the usual code: cv2.resize into a padded canvas, then astype, subtract, divide and transpose.
`warpAffine` is CenterNet's own: cv2.warpAffine, then the same. Medians in milliseconds.
"""

from __future__ import annotations

from typing import Any

import interleaved
import numpy as np

from centermask import ops

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CASES = [(1080, 1920, 512), (1080, 1920, 1024), (480, 640, 512), (3000, 4000, 512)]  # height, width, size of the input


def peers(image: np.ndarray, size: int, scale: float) -> dict[str, interleaved.Call]:
    try:
        import cv2
    except ImportError:
        return {}
    mean, std = np.float32(MEAN), np.float32(STD)
    matrix = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])

    def finish(canvas: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(((canvas.astype(np.float32) - mean) / std).transpose(2, 0, 1))

    def resize() -> np.ndarray:
        canvas = np.zeros((size, size, 3), np.uint8)
        height, width = round(image.shape[0] * scale), round(image.shape[1] * scale)
        canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return finish(canvas)

    def warp() -> np.ndarray:
        return finish(cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR))

    return {"OpenCV + NumPy": resize, "warpAffine + NumPy": warp}


def main() -> None:
    arguments = interleaved.parser_of(__doc__).parse_args()
    interleaved.set_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for height, width, size in CASES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        scale = size / max(height, width)
        matrix = [[scale, 0, 0], [0, scale, 0]]

        def ours(image: np.ndarray = image, matrix: Any = matrix, size: int = size) -> np.ndarray:
            return ops.preprocess(image, matrix, (size, size), mean=MEAN, std=STD, threads=arguments.threads)

        calls = {"ours": ours, **peers(image, size, scale)}
        if "OpenCV + NumPy" in calls:  # noise: OpenCV rounds its weights to 1/2048 and its result to whole grey levels
            inner = np.s_[:, : int(height * scale) - 1, : int(width * scale) - 1]
            difference = np.abs(ours() - calls["OpenCV + NumPy"]())[inner].max() * max(STD)
            assert difference < 3, difference
        times = interleaved.interleave(calls, arguments.seconds)
        rows.append({"case": f"{width}x{height} -> {size}x{size}", "milliseconds": times})
    interleaved.report(arguments, "preprocess", rows)


if __name__ == "__main__":
    main()
