"""Times what runs inside ONNX Runtime beside what one would use without it, one call of each in turn.

    python benchmarks/onnxruntime_ops.py --threads 1,2 --json out.json

Four tables: our DeformConv and the runtime's own; whole predictions on a 1920 x 1080 array by the profiles, with 20
instances; the same with 100 beside a network with dense heads followed by PyTorch, OpenCV and pycocotools; and, where
`ultralytics` is installed, YOLO11n-seg's whole prediction with 100 candidates (architecture from its yaml, weights
random unless --yolo names a file: its time does not depend on them once the number of candidates is set). Medians in
milliseconds. Also the time and memory that a session takes to start. The models are made of checkpoints/default.pt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from centermask import Predictor, _core, ort
from centermask.cli import sample_picture
from centermask.export import translations
from centermask.export.functions import quiet
from centermask.export.graph import fold_batch_norms
from centermask.export.onnx import export
from centermask.nn.model import CenterMask, decode_size, dynamic_mask_logits
from centermask.preprocess import load_image, prepare
from centermask.session import OnnxNetwork
from centermask.training.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# channels in, channels out, height = width; 3x3, padding 1, one picture
SHAPES = [(2048, 256, 16), (256, 128, 32), (128, 64, 64), (512, 256, 16), (64, 64, 128)]


def measure(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each, called in turn for about `seconds`."""
    for call in calls.values():
        call(), call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - before))
    return {name: statistics.median(values) for name, values in times.items()}


def session_of(model: onnx.ModelProto | Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    ort.register(options)
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


# ---- one operator ----


def operator_table(threads: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for channels, out, size in SHAPES:
        rng = np.random.default_rng(0)
        feeds = {
            "x": rng.standard_normal((1, channels, size, size), dtype=np.float32),
            "offset": 2 * rng.standard_normal((1, 18, size, size), dtype=np.float32),
            "mask": rng.uniform(size=(1, 9, size, size)).astype(np.float32),
        }
        weight = rng.standard_normal((out, channels, 3, 3), dtype=np.float32) / (9 * channels) ** 0.5
        bias = rng.standard_normal(out, dtype=np.float32)
        sessions = {}
        for name, domain in (("ours", "centermask"), ("theirs", "")):
            node = helper.make_node("DeformConv", ["x", "w", "offset", "b", "mask"], ["y"], domain=domain, pads=[1] * 4)
            graph = helper.make_graph(
                [node],
                "g",
                [helper.make_tensor_value_info(key, 1, [None] * 4) for key in feeds],
                [helper.make_tensor_value_info("y", 1, [None] * 4)],
                [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
            )
            imports = [helper.make_opsetid("", 19), helper.make_opsetid("centermask", 1)]
            sessions[name] = session_of(helper.make_model(graph, opset_imports=imports, ir_version=9), threads)
        results = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
        calls = {
            name: lambda session=session, feeds=feeds: session.run(None, feeds) for name, session in sessions.items()
        }
        times = measure(calls, seconds)
        error = float(np.abs(results["ours"] - results["theirs"]).max() / np.abs(results["theirs"]).max())
        rows.append({"shape": f"{channels}->{out} @{size}x{size}", **times, "error": error})
        print(rows[-1], flush=True)
    return rows


# ---- whole predictions ----


class Dense(nn.Module):
    """All heads on all cells, and no decoding: what is exported where the runtime can do no better."""

    def __init__(self, model: CenterMask) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        m = self.model
        dense = m.forward(image)
        assert m.offset is not None
        assert m.mask_params is not None
        assert dense.mask_features is not None
        features = dense.features
        return dense.heatmap, m.size(features), m.offset(features), m.mask_params(features), dense.mask_features


def export_dense(model: CenterMask, path: Path) -> None:
    dim = torch.export.Dim
    shapes = {"image": {2: 32 * dim("rows", max=64), 3: 32 * dim("columns", max=64)}}
    with quiet():
        program = torch.onnx.export(
            Dense(model.eval()).eval(), (torch.zeros(1, 3, 128, 192),), dynamo=True, opset_version=19,
            input_names=["image"], dynamic_shapes=shapes, custom_translation_table=translations.STANDARD, verbose=False,
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    fold_batch_norms(proto.graph)
    onnx.save(proto, path)


def by_hand(
    session: onnxruntime.InferenceSession, model: CenterMask, image: np.ndarray, most: int
) -> Callable[[], Any]:
    """The usual way: dense outputs -> PyTorch -> OpenCV -> pycocotools."""
    from pycocotools import mask as coco

    height, width = image.shape[:2]

    def predict() -> list[Any]:
        prepared, matrix = prepare(image, model.config.preprocess)
        outputs = session.run(None, {"image": prepared[None]})
        heatmap, size, offset, params, mask_features = (torch.from_numpy(value) for value in outputs)
        with torch.inference_mode():
            scores = torch.sigmoid(heatmap)
            scores = scores * (F.max_pool2d(scores, 3, 1, 1) == scores)
            rows, columns = scores.shape[2:]
            place = scores.flatten(1).topk(most).indices
            cell = place[0] % (rows * columns)
            x, y = cell % columns, cell // columns
            own_size = decode_size(size[0].flatten(1)[:, cell].T, model.config.box_coding)
            center = torch.stack([x, y], 1) + offset[0].flatten(1)[:, cell].T
            boxes = torch.cat([center - own_size / 2, center + own_size / 2], 1)
            chosen = params[0].flatten(1)[:, cell].T
            logits = dynamic_mask_logits(mask_features, chosen, boxes, torch.zeros(most, dtype=torch.int64)).numpy()
        result = []
        scale, shift = matrix[[0, 1], [0, 1]], matrix[:, 2]
        for box, field in zip((4 * boxes).numpy(), logits, strict=True):
            corners = ((box.reshape(2, 2) - shift) / scale).round().astype(int)
            (x0, y0), (x1, y1) = corners.clip(0, [width, height])
            full = np.zeros((height, width), np.uint8, order="F")
            if x1 > x0 and y1 > y0:
                (u0, v0), (u1, v1) = (
                    (matrix[:, [0, 1]] @ [x0, y0] + shift) / 4,
                    (matrix[:, [0, 1]] @ [x1, y1] + shift) / 4,
                )
                u0, v0 = max(int(u0), 0), max(int(v0), 0)
                crop = field[v0 : max(math.ceil(v1), v0 + 1), u0 : max(math.ceil(u1), u0 + 1)]
                full[y0:y1, x0:x1] = cv2.resize(crop, (int(x1 - x0), int(y1 - y0))) > 0
            result.append(coco.encode(full))
        return result

    return predict


def yolo(path: str | None, threads: int, image: np.ndarray, folder: Path) -> tuple[Callable[[], Any], dict[str, Any]]:
    """YOLO11n-seg in ONNX Runtime, array to masks, by ultralytics' own code, with 100 candidates."""
    from ultralytics import YOLO

    file = folder / "yolo11n-seg.onnx"
    if not file.is_file():
        torch.manual_seed(0)
        source = YOLO(path or "yolo11n-seg.yaml", task="segment", verbose=False)
        if path is None:  # as they are made, all scores are equal and all masks empty
            for module in source.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0  # one picture sets the statistics: activations are then of order one
            source.model.train()(torch.randn(1, 3, 512, 512))
            source.model.eval()
            head = source.model.model[-1]
            for branch, std in ((head.cv2, 0.5), (head.cv3, 0.1), (head.cv4, 0.5)):
                for layers in branch:
                    nn.init.normal_(layers[-1].weight, std=std)
            nn.init.normal_(head.proto.cv3.conv.weight, std=0.5)
        written = source.export(format="onnx", imgsz=512, opset=17, simplify=False, dynamic=False, verbose=False)
        Path(written).replace(file)
    make = onnxruntime.InferenceSession

    def with_threads(model: Any, options: Any = None, **settings: Any) -> Any:
        options = options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return make(model, options, **settings)

    onnxruntime.InferenceSession = with_threads
    try:
        model = YOLO(str(file), task="segment", verbose=False)
        settings: dict[str, Any] = {"imgsz": 512, "iou": 1.0, "max_det": 100, "verbose": False, "device": "cpu"}
        model.predict(image, conf=0.5, **settings)
    finally:
        onnxruntime.InferenceSession = make
    # The score that 100 candidates reach.
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if len(model.predict(image, conf=middle, **{**settings, "max_det": 300})[0]) > 100:
            low = middle
        else:
            high = middle
    found = len(model.predict(image, conf=low, **settings)[0])

    def predict() -> Any:
        # Masks at the picture's resolution are what ours gives; without retina_masks they stay at the input's.
        return model.predict(image, conf=low, **settings)[0].masks

    def predict_retina() -> Any:
        return model.predict(image, conf=low, retina_masks=True, **settings)[0].masks

    return predict, {"candidates": found, "weights": path or "random", "retina": predict_retina}


START = """
import resource, sys, time
import numpy, cv2, onnxruntime
import centermask
def memory():
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20
before, start = memory(), time.perf_counter()
predictor = centermask.Predictor(sys.argv[1], threads=int(sys.argv[2]), device='cpu')
started = time.perf_counter() - start
image = numpy.zeros((1080, 1920, 3), numpy.uint8)
predictor(image)
print(started, time.perf_counter() - start, before, memory())
"""


def starts(paths: dict[str, Path], threads: int) -> dict[str, Any]:
    result = {}
    for name, path in paths.items():
        runs = []
        for _ in range(5):
            command = [sys.executable, "-c", START, str(path), str(threads)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            runs.append([float(word) for word in output.split()])
        keys = ("start_s", "first_result_s", "memory_before_mib", "memory_after_mib")
        result[name] = {key: statistics.median(row[i] for row in runs) for i, key in enumerate(keys)}
        print(name, result[name], flush=True)
    return result


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    parser.add_argument("--checkpoint", default=str(ROOT / "checkpoints" / "default.pt"))
    parser.add_argument("--yolo", metavar="FILE.pt", help="weights of YOLO11n-seg; random ones without")
    parser.add_argument("--int8", type=Path, metavar="FILE", help="also time this file")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    model = load_checkpoint(options.checkpoint).build().eval()
    image = cv2.resize(load_image(sample_picture()), (1920, 1080))
    cv2.setNumThreads(1)
    report: dict[str, Any] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "instructions": _core.isa_used(),
        "threads": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = {name: folder / f"{name}.onnx" for name in ("fused", "standard", "decomposed")}
        for name, path in paths.items():
            export(model, path, profile=name, graph_score_threshold=0.0)  # type: ignore[arg-type]
        if options.int8:
            paths["int8"] = options.int8
        dense = folder / "dense.onnx"
        export_dense(model, dense)
        for threads in (int(text) for text in options.threads.split(",")):
            print(f"-- {threads} threads", flush=True)
            torch.set_num_threads(threads)
            cv2.setNumThreads(threads)
            entry: dict[str, Any] = {"operator": operator_table(threads, options.seconds)}
            ratios = [row["ours"] / row["theirs"] for row in entry["operator"]]
            entry["operator_ratio"] = statistics.geometric_mean(ratios)
            calls: dict[str, Callable[[], Any]] = {}
            for name, path in paths.items():
                # The standard profile without our library: the runtime's own DeformConv, masks by our core.
                network = OnnxNetwork(path, device="cpu", threads=threads, library=name in ("fused", "int8"))
                for most in (20, 100):
                    settings = {"threads": threads, "score_threshold": 0.0, "max_overlap": 1.0, "clip_boxes": False}
                    predictor = Predictor(network, max_instances=most, **settings)
                    calls[f"{name} {most}"] = lambda predictor=predictor: predictor(image).masks.rle
            few = {name: call for name, call in calls.items() if name.endswith(" 20")}
            many = {name: calls[name] for name in ("fused 100", "standard 100")}
            many["dense + torch + OpenCV + pycocotools 100"] = by_hand(session_of(dense, threads), model, image, 100)
            found = {name: len(call()) for name, call in (few | many).items()}
            entry["predictions_20"] = measure(few, 2 * options.seconds)
            print(entry["predictions_20"], flush=True)
            try:
                many["YOLO11n-seg 100"], entry["yolo"] = yolo(options.yolo, threads, image, folder)
                many["YOLO11n-seg 100, masks of the picture"] = entry["yolo"].pop("retina")
            except ImportError:
                entry["yolo"] = "ultralytics is not installed"
            entry["predictions_100"] = measure(many, 4 * options.seconds)
            entry["instances"] = found
            print(entry["predictions_100"], entry["yolo"], found, flush=True)
            entry["start"] = starts(paths, threads)
            report["threads"][threads] = entry
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
