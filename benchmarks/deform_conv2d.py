"""Times deform_conv2d on the CPU, forward and backward, beside its peers in the same process.

    python benchmarks/deform_conv2d.py --threads 1 --json deform_conv2d.json

Medians in milliseconds; NCHW in and out with all changes of layout counted, offsets from N(0, 2), masks from U(0, 1).

    packed    ours with constant weights            ours      ours, weights packed in the call
    bf16      packed, products in bfloat16          backward  ours, all five gradients
    avx2      packed, held to AVX2
    dense     an ordinary convolution of the same size by PyTorch (oneDNN)

Peers that are not installed are left out. `peak` is what `packed` reaches of the float32 multiply-adds that the
processor's registers can do, measured in the same run. `scaling` is how many times faster two threads are; on a machine
with other work only as far as `nice -n -20` keeps that away. `memory` is the growth of the process during one call of
`packed` (in a process of its own) beyond the output and one copy of x, in megabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import interleaved
import numpy as np

from centermask import _core, ops

# batch, channels in, channels out, height = width; 3x3, padding 1. The first are those of CenterNet's necks at 512
# pixels, the others of a smaller one's training.
FIRST = 5
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

Shape = tuple[int, int, int, int]
Peer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def onnx_runtime(weight: np.ndarray, threads: int) -> Peer | None:
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
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its idle threads would slow the others
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except RuntimeError:  # before 1.25: not implemented
        return None
    return lambda x, offset, mask: session.run(None, {"x": x, "offset": offset, "mask": mask})[0]


def openvino(weight: np.ndarray, shape: Shape, threads: int) -> Peer | None:
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


def arrays_of(shape: Shape) -> tuple[np.ndarray, ...]:
    """x, weight, offset, mask, gradient of the output."""
    n, c, out, size = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c, size, size), np.float32)
    weight = rng.standard_normal((out, c, 3, 3), np.float32) / np.float32(3 * c**0.5)
    offset = rng.standard_normal((n, 18, size, size), np.float32) * np.float32(2)
    mask = rng.random((n, 9, size, size), np.float32)
    return x, weight, offset, mask, rng.standard_normal((n, out, size, size), np.float32)


def with_instruction_set(isa: str, call: interleaved.Call) -> interleaved.Call:
    def wrapped() -> None:
        before = os.environ.get("CENTERMASK_ISA", "")
        os.environ["CENTERMASK_ISA"] = isa
        try:
            call()
        finally:
            os.environ["CENTERMASK_ISA"] = before

    return wrapped


def variants(weight: np.ndarray, inputs: tuple[np.ndarray, ...], threads: int) -> dict[str, interleaved.Call]:
    """`packed` in other ways."""
    calls: dict[str, interleaved.Call] = {}
    narrow = ops.PackedDeformConv2d(weight, padding=1, threads=threads, allow_bf16=True)
    if narrow.uses_bf16:
        calls["bf16"] = lambda: narrow(*inputs)
    if _core.isa_used() == "avx512":
        held: list[ops.PackedDeformConv2d] = []
        with_instruction_set("avx2", lambda: held.append(ops.PackedDeformConv2d(weight, padding=1, threads=threads)))()
        calls["avx2"] = with_instruction_set("avx2", lambda: held[0](*inputs))
    return calls


def scaling(shape: Shape, seconds: float) -> float:
    """How many times faster `packed` is with two threads. These two alone take turns: peers have threads too."""
    x, weight, offset, mask, _ = arrays_of(shape)
    packed = {threads: ops.PackedDeformConv2d(weight, padding=1, threads=threads) for threads in (1, 2)}
    times = interleaved.interleave(
        {str(threads): lambda op=op: op(x, offset, mask) for threads, op in packed.items()}, seconds
    )
    return times["1"] / times["2"]


def bf16_error(shape: Shape) -> float | None:
    """Relative error (of norms) of products in bfloat16; None where they are not to be had."""
    x, weight, offset, mask, _ = arrays_of(shape)
    narrow = ops.PackedDeformConv2d(weight, padding=1, allow_bf16=True)
    if not narrow.uses_bf16:
        return None
    exact = ops.deform_conv2d(x, weight, offset, mask, padding=1)
    return float(np.linalg.norm(narrow(x, offset, mask) - exact) / np.linalg.norm(exact))


def torch_calls(arrays: tuple[np.ndarray, ...], slow: bool) -> dict[str, interleaved.Call]:
    try:
        import torch
    except ImportError:
        return {}
    x, weight, offset, mask, grad = (torch.from_numpy(array) for array in arrays)
    calls: dict[str, interleaved.Call] = {"dense": lambda: torch.nn.functional.conv2d(x, weight, padding=1)}
    if not slow:
        return calls
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        return calls
    wanted = [tensor.clone().requires_grad_() for tensor in (x, weight, offset, mask)]

    def forward(tensors: list[torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = deform_conv2d(tensors[0], tensors[2], tensors[1], padding=1, mask=tensors[3])
        return result

    held = forward(wanted)
    calls["torchvision"] = lambda: forward([x, weight, offset, mask])
    calls["torchvision backward"] = lambda: torch.autograd.grad(held, wanted, grad, retain_graph=True)
    return calls


def calls_of(shape: Shape, threads: int, slow: bool) -> dict[str, interleaved.Call]:
    arrays = arrays_of(shape)
    x, weight, offset, mask, grad = arrays
    packed = ops.PackedDeformConv2d(weight, padding=1, threads=threads)
    calls: dict[str, interleaved.Call] = {
        "packed": lambda: packed(x, offset, mask),
        "ours": lambda: ops.deform_conv2d(x, weight, offset, mask, padding=1, threads=threads),
        "backward": lambda: ops.deform_conv2d_backward(grad, x, weight, offset, mask, padding=1, threads=threads),
        **variants(weight, (x, offset, mask), threads),
        **torch_calls(arrays, slow),
    }
    for name, peer in (("ONNX Runtime", onnx_runtime(weight, threads)), ("OpenVINO", openvino(weight, shape, threads))):
        if peer is not None:
            np.testing.assert_allclose(peer(x, offset, mask), packed(x, offset, mask), atol=1e-3)
            calls[name] = lambda peer=peer: peer(x, offset, mask)
    return calls


def memory_of(shape: Shape, threads: int) -> float:
    """Megabytes beyond output and one copy of x, for one call."""
    x, weight, offset, mask, grad = arrays_of(shape)
    packed = ops.PackedDeformConv2d(weight, padding=1, threads=threads)
    packed(x[:, :, :1, :1], offset[:, :, :1, :1], mask[:, :, :1, :1])  # threads and code
    grown = interleaved.peak_memory(lambda: packed(x, offset, mask))
    return max(0.0, grown - (grad.nbytes + x.nbytes) / 1e6)  # of a batch, less than one copy of x is held


def memory_in_own_process(shape: Shape, threads: int) -> float:
    command = [sys.executable, __file__, "--memory-of", json.dumps(shape), "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric means, least and largest of the ratios that the goals are about."""
    peers = ("torchvision", "ONNX Runtime", "OpenVINO")
    ratios: dict[str, list[float]] = {}
    for row in rows:
        times = row["milliseconds"]
        pairs = [
            ("packed", "dense"),
            ("bf16", "dense"),
            ("backward", "torchvision backward"),
            ("backward", "ours"),
            ("packed", "avx2"),
        ]
        for ours, other in pairs:
            if ours in times and other in times:
                ratios.setdefault(f"{ours} / {other}", []).append(times[ours] / times[other])
        if found := [times[peer] for peer in peers if peer in times]:
            ratios.setdefault("packed / fastest deformable peer", []).append(times["packed"] / min(found))
    return {
        name: {"mean": interleaved.geometric_mean(values), "least": min(values), "largest": max(values)}
        for name, values in ratios.items()
    }


def main() -> None:
    parser = interleaved.parser_of(__doc__)
    parser.add_argument("--no-torchvision", action="store_true", help="leave out the peer that takes seconds")
    parser.add_argument("--memory-of", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(memory_of(tuple(arguments.memory_of), arguments.threads))
        return
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(arguments.threads)
    isa = _core.isa_used()
    peak = interleaved.matrix_peak(isa)
    rows = []
    for shape in SHAPES:
        n, c, out, size = shape
        times = interleaved.interleave(
            calls_of(shape, arguments.threads, not arguments.no_torchvision), arguments.seconds
        )
        speed = 2 * n * c * out * 9 * size * size / times["packed"] / 1e6
        row = {"case": f"{n}x{c}->{out} @{size}x{size}", "milliseconds": times, "gflops": speed}
        if (error := bf16_error(shape)) is not None:
            row["bf16 error"] = error
        if arguments.threads == 1 and (os.cpu_count() or 1) > 1:
            row["scaling"] = scaling(shape, arguments.seconds / 4)
        row["memory"] = memory_in_own_process(shape, arguments.threads)
        if peak is not None:
            row["peak"] = speed / peak / arguments.threads
        rows.append(row)
        print(row["case"], *(f"{name} {interleaved.number(ms)}" for name, ms in times.items()), sep="  ", flush=True)
    names = list(dict.fromkeys(name for row in rows for name in row["milliseconds"]))
    head = ["milliseconds", *names, "peak", "scaling", "memory, MB"]
    print(f"\n{interleaved.processor()}, {isa}, threads {arguments.threads}, peak {peak or 0:.0f} GFLOP/s a core\n")
    body = [
        [row["case"], *(interleaved.number(row["milliseconds"].get(name)) for name in names),
         interleaved.number(row.get("peak"), 2), interleaved.number(row.get("scaling")),
         interleaved.number(row["memory"], 2)]
        for row in rows
    ]  # fmt: skip
    print(interleaved.table([head, *body]))
    ratios = ratios_of(rows[:FIRST])
    print(f"\nover the first {FIRST} shapes, and over all:\n")
    for name, values in ratios_of(rows).items():
        texts = (f"{v['mean']:.3f} ({v['least']:.2f} .. {v['largest']:.2f})" for v in (ratios[name], values))
        print(f"- {name}: {', '.join(texts)}")
    interleaved.finish(arguments, "deform_conv2d", rows, ratios=ratios, peak_gflops=peak)


if __name__ == "__main__":
    main()
