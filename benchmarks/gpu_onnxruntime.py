"""Our operators in ONNX Runtime's CUDA provider against the runtime's own.

    python benchmarks/gpu_onnxruntime.py [--model default] [--cpu-library FILE.so] [--json FILE]

Needs onnxruntime-gpu and a build with CENTERMASK_CUDA=ON. One operator: `DeformConv` of each, float32 and float16
where the runtime has it, inputs and output on the device. Whole models: an embedded one with our operators, and as the
definitions in ONNX's own operators that its file has with it; with --cpu-library also with the operators of a build
without CUDA, which run on the CPU in between. Medians of calls taken in turn, each waiting for the device, in
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from centermask import _core, ort
from centermask.predictor import model_path

SHAPES = [(2048, 256, 16), (256, 128, 32), (128, 64, 64), (512, 256, 16), (64, 64, 128)]
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def session_of(data: bytes | str, library: str | None, *, gpu_alone: bool = False) -> onnxruntime.InferenceSession:
    """A session with its CUDA provider, and with our operators of `library`; `gpu_alone` forbids the way to the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if gpu_alone:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if library:
        options.register_custom_ops_library(library)
    session = onnxruntime.InferenceSession(data, options, providers=PROVIDERS[:1] if gpu_alone else PROVIDERS)
    if session.get_providers()[0] != PROVIDERS[0]:
        raise SystemExit("onnxruntime could not start its CUDA provider")
    return session


def bound(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> Callable[[], list[Any]]:
    """A run whose inputs are on the device and whose outputs stay there."""
    binding = session.io_binding()
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for name, value in feeds.items()}
    for name, value in kept.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)

    def call() -> list[Any]:
        session.run_with_iobinding(binding)
        return [kept, *binding.get_outputs()]

    return call


def in_turn(calls: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Median milliseconds of each, after half a second of all: the card raises its clock only under load."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.5:
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 4) for name, values in times.items()}


def operator_rows(batch: int, turns: int) -> list[dict[str, Any]]:
    """`DeformConv`, one shape a row."""
    rows = []
    for channels, out, size in SHAPES:
        for dtype in (np.float32, np.float16):
            rng = np.random.default_rng(0)
            feeds = {
                "x": rng.standard_normal((batch, channels, size, size)).astype(dtype),
                "offset": (2 * rng.standard_normal((batch, 18, size, size))).astype(dtype),
                "mask": rng.uniform(size=(batch, 9, size, size)).astype(dtype),
            }
            weight = (rng.standard_normal((out, channels, 3, 3)) / (9 * channels) ** 0.5).astype(dtype)
            bias = rng.standard_normal(out).astype(dtype)
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            calls: dict[str, Callable[[], list[Any]]] = {}
            row: dict[str, Any] = {"shape": f"{channels}->{out} @{size}x{size}", "batch": batch}
            row["dtype"] = np.dtype(dtype).name
            for name, domain in (("ours", "centermask"), ("runtime", "")):
                inputs = ["x", "w", "offset", "b", "mask"]
                node = helper.make_node("DeformConv", inputs, ["y"], domain=domain, pads=[1] * 4)
                graph = helper.make_graph(
                    [node],
                    "g",
                    [helper.make_tensor_value_info(key, kind, value.shape) for key, value in feeds.items()],
                    [helper.make_tensor_value_info("y", kind, [batch, out, size, size])],
                    [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
                )
                imports = [helper.make_opsetid("", 22), helper.make_opsetid("centermask", 1)]
                model = helper.make_model(graph, opset_imports=imports, ir_version=10)
                try:
                    session = session_of(model.SerializeToString(), str(ort.library_path()), gpu_alone=True)
                    calls[name] = bound(session, feeds)
                    calls[name]()
                except Exception as error:
                    calls.pop(name, None)
                    row[f"{name} failed"] = str(error)[:200]
            results = {name: np.asarray(call()[1].numpy(), np.float64) for name, call in calls.items()}
            row |= in_turn(calls, turns)
            if len(results) == 2:
                row["difference"] = float(
                    abs(results["ours"] - results["runtime"]).max() / abs(results["runtime"]).max()
                )
                row["ours / runtime"] = round(row["ours"] / row["runtime"], 3)
            rows.append(row)
            print(row, flush=True)
    return rows


def model_rows(model: str, cpu_library: str, sizes: list[tuple[int, int]], turns: int) -> list[dict[str, Any]]:
    """Whole models, from an image on the device to the model's outputs."""
    path = str(model_path(model))
    kinds = {"our operators": str(ort.library_path()), "ONNX's operators": None}
    if cpu_library:
        kinds["our operators on the CPU"] = cpu_library
    rows = []
    for height, width in sizes:
        image = np.random.default_rng(1).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
        sessions = {name: session_of(path, library) for name, library in kinds.items()}
        calls = {name: bound(session, {session.get_inputs()[0].name: image}) for name, session in sessions.items()}
        row = {"model": model, "size": f"{height}x{width}", **in_turn(calls, turns)}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--cpu-library", default="", help="libcentermask_ort.so of a build without CUDA")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {
        "onnxruntime": onnxruntime.__version__,
        "devices": _core.cuda_devices(),
        "operator": [*operator_rows(1, arguments.turns), *operator_rows(16, arguments.turns)],
        "model": model_rows(arguments.model, arguments.cpu_library, [(320, 320), (640, 640)], arguments.turns),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
