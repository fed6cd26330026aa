"""Times centre decoding beside the usual way in PyTorch, and the sparse heads beside dense ones.

    python benchmarks/decode.py --threads 1 --json decode.json

`torch` is what CenterNet's code does: sigmoid of the whole heatmap, 3x3 max-pooling and equality, top-K in each class
and then over all. `heads` are three heads of 64 channels (size 2, offset 2, mask parameters 169): `dense` evaluates
them everywhere, by PyTorch (oneDNN), and picks the K centres; `sparse` gathers the patches of the K centres and
multiplies. Medians in milliseconds; one image.
"""

from __future__ import annotations

from typing import Any

import interleaved
import numpy as np

from centermask import ops

CASES = [(80, 128, 128, 100), (7, 80, 80, 100), (1, 256, 256, 400)]  # classes, height, width, K
HEADS = (2, 2, 169)
CHANNELS = 64


def heatmap_of(classes: int, height: int, width: int) -> np.ndarray:
    """Logits as a trained network gives them: about -5 everywhere, with some blobs."""
    rng = np.random.default_rng(0)
    heatmap = rng.normal(-5, 0.6, (1, classes, height, width)).astype(np.float32)
    y, x = np.mgrid[-4:5, -4:5]
    for _ in range(60):
        c, cy, cx = rng.integers(classes), rng.integers(4, height - 4), rng.integers(4, width - 4)
        blob = rng.uniform(3, 8) * np.exp(-(y * y + x * x) / rng.uniform(2, 16))
        heatmap[0, c, cy - 4 : cy + 5, cx - 4 : cx + 5] += blob.astype(np.float32)
    return heatmap


def torch_decode(heatmap: np.ndarray, k: int) -> interleaved.Call | None:
    try:
        import torch
    except ImportError:
        return None
    logits = torch.from_numpy(heatmap)

    def call() -> tuple[torch.Tensor, ...]:
        heat = logits.sigmoid()
        heat = heat * (torch.nn.functional.max_pool2d(heat, 3, 1, 1) == heat)
        n, c, h, w = heat.shape
        scores, index = heat.view(n, c, -1).topk(min(k, h * w))
        scores, order = scores.view(n, -1).topk(k)
        return scores, order // min(k, h * w), index.view(n, -1).gather(1, order)

    return call


def head_calls(height: int, width: int, k: int, threads: int) -> dict[str, interleaved.Call]:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((1, CHANNELS, height, width), np.float32)
    index = rng.choice(height * width, (1, k), replace=False).astype(np.int64)
    weights = [
        (
            rng.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32) / 24,
            rng.standard_normal((out, CHANNELS), np.float32),
        )
        for out in HEADS
    ]

    def sparse() -> list[np.ndarray]:
        patches = ops.gather_patches(features, index, threads=threads)[0]
        return [np.maximum(patches @ first.reshape(CHANNELS, -1).T, 0) @ second.T for first, second in weights]

    calls: dict[str, interleaved.Call] = {"sparse heads": sparse}
    try:
        import torch
    except ImportError:
        return calls
    inputs, places = torch.from_numpy(features), torch.from_numpy(index[0])
    tensors = [(torch.from_numpy(first), torch.from_numpy(second)[:, :, None, None]) for first, second in weights]

    def dense() -> list[torch.Tensor]:
        maps = (torch.nn.functional.conv2d(inputs, first, padding=1).relu() for first, _ in tensors)
        return [
            torch.nn.functional.conv2d(hidden, second)[0].flatten(1)[:, places].T
            for hidden, (_, second) in zip(maps, tensors, strict=True)
        ]

    for ours, theirs in zip(sparse(), dense(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    calls["dense heads"] = dense
    return calls


def main() -> None:
    arguments = interleaved.parser_of(__doc__).parse_args()
    interleaved.set_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for classes, height, width, k in CASES:
        heatmap = heatmap_of(classes, height, width)
        calls: dict[str, interleaved.Call] = {
            "ours": lambda heatmap=heatmap, k=k: ops.decode_centers(heatmap, k, threads=arguments.threads)
        }
        peer = torch_decode(heatmap, k)
        if peer is not None:
            centers, (scores, labels, index) = ops.decode_centers(heatmap, k), peer()
            np.testing.assert_allclose(centers.scores, scores, rtol=1e-5)
            np.testing.assert_array_equal(centers.labels, labels)
            np.testing.assert_array_equal(centers.index, index)
            calls["torch"] = peer
        calls.update(head_calls(height, width, k, arguments.threads))
        times = interleaved.interleave(calls, arguments.seconds)
        rows.append({"case": f"{classes}x{height}x{width}, K={k}", "milliseconds": times})
    interleaved.report(arguments, "decode", rows)


if __name__ == "__main__":
    main()
