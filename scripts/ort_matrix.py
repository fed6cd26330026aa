#!/usr/bin/env python3
"""Runs the operator library and the embedded model in many versions of ONNX Runtime.

    python scripts/ort_matrix.py [--versions 1.15.1,1.23.2,newest] [--cache DIR] [--json FILE]

The package itself is installed nowhere: each runtime goes with NumPy into a folder of its own under --cache, for the
newest Python (of pyenv, uv or PATH) that has a wheel of it, or the one that is asked for (1.23.2@3.10), and loads the
very library of the centermask that imports here. It runs (a) one model of all four operators, with a wrong input too,
(b) the embedded model with the library (in 1.15 as of opset 18, see docs/deployment.md), (c) without. Expected values
come from this process. Exit code 0 if (a) and (b) hold everywhere. Needs centermask, numpy and onnx here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VERSIONS = (
    "1.15.1",
    "1.16.3",
    "1.17.3",
    "1.18.1",
    "1.19.2",
    "1.20.1",
    "1.23.2@3.10",
    "1.23.2",
    "1.25.1",
    "1.30.0",
    "newest",
)

# What runs in the other interpreter: nothing but NumPy, onnxruntime and Python 3.8.
CHILD = r'''
import json, sys, time
import numpy as np
import onnxruntime as runtime
library, folder = sys.argv[1:]
result = {"version": runtime.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}

def session(path, with_library):
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if with_library:
        options.register_custom_ops_library(library)
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

def error(name, with_library):
    """Largest error of each output, relative to its largest value; and the time to start."""
    start = time.perf_counter()
    ready = session(folder + "/" + name + ".onnx", with_library)
    seconds = time.perf_counter() - start
    inputs, expected = np.load(folder + "/" + name + ".in.npz"), np.load(folder + "/" + name + ".out.npz")
    outputs = [value.name for value in ready.get_outputs()]
    worst = 0.0
    for key, value in zip(outputs, ready.run(None, {key: inputs[key] for key in inputs.files})):
        assert value.shape == expected[key].shape and value.dtype == expected[key].dtype, key
        if value.size:
            worst = max(worst, np.abs(value.astype(float) - expected[key]).max() / max(1, np.abs(expected[key]).max()))
    return ready, worst, seconds

def tried(function):
    try:
        return function()
    except Exception as problem:
        return "failed: " + (str(problem).strip().splitlines() or ["?"])[0]

def operators():
    for _ in range(20):  # sessions come and go, and with them, as far as the runtime is concerned, the library
        error("operators", True)
    ready, worst, _ = error("operators", True)
    inputs = dict(np.load(folder + "/operators.in.npz"))
    inputs["offset"] = inputs["offset"][:, :4]
    try:
        ready.run(None, inputs)
        return "failed: a wrong shape was not refused"
    except Exception as problem:
        if "deform_conv2d: offset must be" not in str(problem):
            return "failed: " + str(problem)
    return worst

result["operators"] = tried(operators)
model = "model18" if runtime.__version__.startswith("1.15.") else "model"
result["model"] = tried(lambda: error(model, True)[1:])
result["without"] = tried(lambda: error("model", False)[1:])
print(json.dumps(result))
'''


def write_cases(folder: Path) -> None:
    """The two models, their inputs, and what this package's own operators and PyTorch-free session give for them."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from centermask import ops
    from centermask.predictor import model_path
    from centermask.preprocess import load_image, prepare
    from centermask.session import NetworkOutput, OnnxNetwork

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 9, 11)).astype("f")
    weight, bias = (rng.normal(size=shape).astype("f") for shape in ((8, 8, 3, 3), (8,)))
    inputs = {
        "x": x,
        "offset": rng.normal(size=(2, 18, 9, 11)).astype("f"),
        "mask": rng.uniform(size=(2, 9, 9, 11)).astype("f"),
        "heatmap": rng.normal(size=(2, 3, 9, 11)).astype("f"),
        "params": rng.normal(0, 0.4, size=(2, 6, 169)).astype("f"),
        "boxes": np.tile(np.array([4, 3, 30, 33], "f"), (2, 6, 1)),
        "image_to_input": np.tile(np.array([[0.5, 0, 0.25], [0, 0.5, 0.25]]), (2, 1, 1)),
        "image_size": np.array([[60, 70], [50, 90]]),
    }
    inputs["offset"][0, 0, 0, :4] = [np.nan, np.inf, -np.inf, 1e20]

    def node(kind: str, take: str, give: str, **attributes: Any) -> onnx.NodeProto:
        names = ["" if name == "-" else name for name in take.split()]
        return helper.make_node(kind, names, give.split(), domain="centermask", **attributes)

    nodes = [
        node("DeformConv", "x weight offset bias mask", "features", pads=[1] * 4, activation="relu"),
        node("DeformConv", "x weight offset - mask", "without_bias", pads=[1] * 4),
        node("DecodeCenters", "heatmap", "scores labels index count", top_k=6, score_threshold=0.5),
        node("GatherPatches", "features index", "patches"),
        node(
            "AssembleMasks",
            "features params boxes labels count image_to_input image_size",
            "rle_counts rle_offsets",
            head="dynamic",
        ),
    ]
    y = ops.deform_conv2d(x, weight, inputs["offset"], inputs["mask"], bias, padding=1, activation="relu")
    centers = ops.decode_centers(inputs["heatmap"], 6, 0.5)
    runs, offsets = [], [0]
    for n in range(2):
        count = int(centers.count[n])
        masks = ops.assemble_masks(
            y[n], inputs["params"][n, :count], inputs["boxes"][n, :count], head="dynamic",
            image_size=tuple(inputs["image_size"][n]), image_to_input=inputs["image_to_input"][n],
            box_margin=float(np.float32(0.1)),
        )  # fmt: skip
        for k in range(6):
            if k < count:
                bitmap = np.append(ops.rle_decode(masks[k]).T.ravel().astype(np.int8), 2)
                edges = np.flatnonzero(np.diff(bitmap, prepend=np.int8(0)))
                runs.append(np.diff(edges, prepend=0).astype(np.uint32))
            offsets.append(offsets[-1] + (len(runs[-1]) if k < count else 0))
    outputs = {
        "features": y,
        "without_bias": ops.deform_conv2d(x, weight, inputs["offset"], inputs["mask"], padding=1),
        "scores": centers.scores,
        "labels": centers.labels,
        "index": centers.index,
        "count": centers.count,
        "patches": ops.gather_patches(y, centers.index),
        "rle_counts": np.concatenate(runs),
        "rle_offsets": np.array(offsets),
    }

    def describe(values: dict[str, np.ndarray], open_shapes: bool) -> list[onnx.ValueInfoProto]:
        kind = helper.np_dtype_to_tensor_dtype
        return [
            helper.make_tensor_value_info(
                name, kind(value.dtype), None if open_shapes else [f"{name}_{i}" for i in range(value.ndim)]
            )
            for name, value in values.items()
        ]

    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "operators", describe(inputs, False), describe(outputs, True), constants)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("centermask", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "operators.onnx")
    np.savez(folder / "operators.in.npz", **inputs)
    np.savez(folder / "operators.out.npz", **outputs)

    shutil.copy(model_path("default"), folder / "model.onnx")
    network = OnnxNetwork(model_path("default"), device="cpu", threads=2)
    image = prepare(load_image(model_path("default").with_name("sample.jpg")), network.info.preprocess)[0][None]
    found = network(image)
    assert found.count[0] > 0
    older = onnx.load(model_path("default"))  # what `export --opset 18` writes, but for the functions
    older.opset_import[0].version = 18
    del older.functions[:]
    onnx.save(older, folder / "model18.onnx")
    for name in ("model", "model18"):
        np.savez(folder / f"{name}.in.npz", image=image)
        np.savez(folder / f"{name}.out.npz", **dict(zip(NetworkOutput._fields, found, strict=True)))


def interpreters() -> list[Path]:
    """All Pythons from 3.8 on, one for each minor version, the newest first."""
    found = [*Path.home().glob(".pyenv/versions/*/bin/python"), Path(sys.executable)]
    found += [Path(path) for minor in range(8, 20) if (path := shutil.which(f"python3.{minor}"))]
    if shutil.which("uv"):
        listed = subprocess.run(
            ["uv", "python", "list", "--only-installed"], capture_output=True, text=True, check=False
        )
        found += [Path(path) for path in re.findall(r"\s(/\S+)", listed.stdout)]
    by_version: dict[int, Path] = {}
    for path in found:
        asked = subprocess.run(
            [path, "-c", "import sys, pip; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0 and asked.stdout.startswith("3 "):
            by_version.setdefault(int(asked.stdout.split()[1]), path)
    return [path for minor, path in sorted(by_version.items(), reverse=True) if minor >= 8]


def install(version: str, pythons: list[Path], cache: Path) -> tuple[Path, Path] | str:
    """An interpreter, and the folder that holds this runtime for it; or why there is none."""
    # Extensions built for NumPy 1 do not load into NumPy 2, which runtimes allow from 1.19 on.
    version, _, asked = version.partition("@")
    numpy = "numpy<2" if version != "newest" and tuple(map(int, version.split(".")[:2])) < (1, 19) else "numpy"
    wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    reason = "no Python"
    for python in pythons:
        minor = subprocess.run([python, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True)
        if asked not in ("", f"3.{minor.stdout.strip()}"):
            continue
        folder = cache / f"{version}-3.{minor.stdout.strip()}"
        if (folder / "done").is_file():
            return python, folder
        shutil.rmtree(folder, ignore_errors=True)
        command = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
        ]
        command += ["--only-binary=:all:", "--target", str(folder), wanted, numpy]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (folder / "done").touch()
            return python, folder
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
    return reason


def text_of(value: Any, limit: float) -> tuple[str, bool]:
    """An entry of the table, and whether it is good."""
    if isinstance(value, list):
        value, seconds = value
        return f"{value:.1e}, starts in {seconds:.2f} s", value <= limit
    if isinstance(value, str):
        return ("no" if "NOT_IMPLEMENTED" in value else value), False
    return f"{value:.1e}", value <= limit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", default=",".join(VERSIONS), help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ort_matrix", help="of runtimes")
    parser.add_argument("--json", type=Path, help="write what was found")
    options = parser.parse_args()
    from centermask import ort

    pythons = interpreters()
    options.cache.mkdir(parents=True, exist_ok=True)
    rows, all_good = [], True
    print("| ONNX Runtime | Python | NumPy | the four operators | embedded model | the same without the library |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        write_cases(Path(temporary))
        for version in options.versions.split(","):
            found = install(version, pythons, options.cache)
            if isinstance(found, str):
                print(f"| {version} | | | not installed: {found} | | |", flush=True)
                all_good = False
                continue
            python, folder = found
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            child = subprocess.run(
                [python, "-c", CHILD, str(ort.library_path()), temporary],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if child.returncode != 0:
                problem = f"exit code {child.returncode}: {child.stderr.strip().splitlines()[-1:]}"
                row = {
                    "version": version,
                    "python": "",
                    "numpy": "",
                    "operators": problem,
                    "model": problem,
                    "without": "",
                }
            else:
                row = json.loads(child.stdout.strip().splitlines()[-1])
            rows.append(row)
            # float32 sums in the order of another instruction set or release; boxes are hundreds of pixels.
            entries = [text_of(row["operators"], 1e-5), text_of(row["model"], 1e-4), text_of(row["without"], 1e-3)]
            all_good = all_good and entries[0][1] and entries[1][1]
            words = " | ".join(text for text, _ in entries)
            print(f"| {row['version']} | {row['python']} | {row['numpy']} | {words} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
