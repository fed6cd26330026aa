"""Times deform_conv2d, forward and backward, beside its peers, one call of each in turn.

    python benchmarks/deform_conv2d.py --threads 1 --json out.json

Prints medians in milliseconds: NCHW in and out, all layout changes counted, offsets from N(0, 2), masks from U(0, 1).
`packed` is ours with constant weights, `ours` packs them in the call; `dense` is an ordinary convolution of the same
size by PyTorch (oneDNN). Peers that are not installed are left out. `peak` is the fraction of the speed of a large
matrix product, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from centermask import _core, ops

# batch, channels in, channels out, height = width; 3x3, padding 1
SHAPES = [
    (1, 2048, 256, 16),
    (1, 256, 128, 32),
    (1, 128, 64, 64),
    (1, 512, 256, 16),
    (1, 64, 64, 128),
    (12, 320, 128, 10),
    (12, 128, 96, 20),
    (12, 96, 64, 40),
]


def onnx_runtime(weight: np.ndarray, threads: int) -> Callable[..., np.ndarray] | None:
    """ONNX Runtime's DeformConv with constant weights, called with (x, offset, mask)."""
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("DeformConv", ["x", "w", "offset", "", "mask"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "deform_conv2d",
        [helper.make_tensor_value_info(name, number, [None] * 4) for name in ("x", "offset", "mask")],
        [helper.make_tensor_value_info("y", number, [None] * 4)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except RuntimeError:  # before 1.25: not implemented
        return None
    return lambda x, offset, mask: session.run(None, {"x": x, "offset": offset, "mask": mask})[0]


def openvino(weight: np.ndarray, shape: tuple[int, int, int, int], threads: int) -> Callable[..., np.ndarray] | None:
    """OpenVINO's DeformableConvolution-8 with constant weights, called with (x, offset, mask)."""
    try:
        import openvino as ov
        from openvino import opset8
    except ImportError:
        return None
    n, c, _, size = shape
    inputs = [opset8.parameter([n, channels, size, size], np.float32) for channels in (c, 18, 9)]
    node = opset8.deformable_convolution(
        inputs[0], inputs[1], opset8.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1], mask=inputs[2],
        bilinear_interpolation_pad=True,
    )  # fmt: skip
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(ov.Model([node], inputs), "CPU", config)
    return lambda x, offset, mask: compiled([x, offset, mask])[0]


def matrix_peak() -> float:
    """GFLOP/s of a large float32 matrix product with torch's present number of threads."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = min(timed(lambda: a @ b) for _ in range(7))
    return 2 * 1024**3 / best / 1e6


clock = time.perf_counter


def timed(call: Callable[[], Any]) -> float:
    start = clock()
    call()
    return (clock() - start) * 1e3


def measure(shape: tuple[int, int, int, int], threads: int, repeats: int, slow: bool) -> dict[str, float]:
    n, c, out, size = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c, size, size), np.float32)
    weight = rng.standard_normal((out, c, 3, 3), np.float32) / np.float32(3 * c**0.5)
    offset = rng.standard_normal((n, 18, size, size), np.float32) * np.float32(2)
    mask = rng.random((n, 9, size, size), np.float32)
    grad = rng.standard_normal((n, out, size, size), np.float32)
    tensors = {name: torch.from_numpy(a) for name, a in (("x", x), ("w", weight), ("o", offset), ("m", mask))}

    packed = ops.PackedDeformConv2d(weight, padding=1, threads=threads)
    calls: dict[str, Callable[[], Any]] = {
        "packed": lambda: packed(x, offset, mask),
        "ours": lambda: ops.deform_conv2d(x, weight, offset, mask, padding=1, threads=threads),
        "dense": lambda: torch.nn.functional.conv2d(tensors["x"], tensors["w"], padding=1),
        "backward": lambda: ops.deform_conv2d_backward(grad, x, weight, offset, mask, padding=1, threads=threads),
    }
    for name, peer in (("ort", onnx_runtime(weight, threads)), ("openvino", openvino(weight, shape, threads))):
        if peer is not None:
            np.testing.assert_allclose(peer(x, offset, mask), packed(x, offset, mask), atol=1e-3)
            calls[name] = lambda peer=peer: peer(x, offset, mask)
    if slow:
        try:
            from torchvision.ops import deform_conv2d
        except ImportError:
            pass
        else:
            wanted = [t.clone().requires_grad_() for t in tensors.values()]

            def forward() -> torch.Tensor:
                result: torch.Tensor = deform_conv2d(wanted[0], wanted[2], wanted[1], padding=1, mask=wanted[3])
                return result

            held = forward()
            calls["torchvision"] = forward
            calls["torchvision_backward"] = lambda: torch.autograd.grad(
                held, wanted, torch.from_numpy(grad), retain_graph=True
            )

    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            if "torchvision" in name and turn > 3:
                continue
            elapsed = timed(call)
            if turn > 0:  # the first call warms up
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--no-torchvision", action="store_true", help="leave out the peer that takes seconds")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: steadier on a busy machine, for one thread only"
    )
    arguments = parser.parse_args()
    if arguments.clock == "cpu":
        if arguments.threads != 1:
            parser.error("--clock cpu adds up all threads: use it with --threads 1")
        global clock
        clock = time.process_time
    torch.set_num_threads(arguments.threads)
    peak = matrix_peak()
    rows = []
    with torch.inference_mode(False):
        for shape in SHAPES:
            times = measure(shape, arguments.threads, arguments.repeats, not arguments.no_torchvision)
            n, c, out, size = shape
            speed = 2 * n * c * out * 9 * size * size / times["packed"] / 1e6
            rows.append({"shape": shape, "milliseconds": times, "peak": speed / peak})
            text = "  ".join(f"{name} {value:.2f}" for name, value in times.items())
            print(f"{n}x{c}->{out} @{size}: {text}  peak {speed / peak:.2f}", flush=True)
    ratios = {
        f"{a}/{b}": statistics.geometric_mean(r["milliseconds"][a] / r["milliseconds"][b] for r in rows)
        for a, b in (("packed", "dense"), ("backward", "ours"), ("backward", "torchvision_backward"))
        if all(b in r["milliseconds"] for r in rows)
    }
    print("geometric means:", "  ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
    if arguments.json:
        machine = {"machine": platform.machine(), "isa": _core.isa_used(), "matrix_peak_gflops": peak}
        versions = {"torch": torch.__version__, "numpy": np.__version__, "centermask": _core.__version__}
        arguments.json.write_text(
            json.dumps({"threads": arguments.threads, **machine, "versions": versions, "rows": rows, "ratios": ratios})
        )


if __name__ == "__main__":
    main()
