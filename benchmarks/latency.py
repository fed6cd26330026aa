"""What each neck and mask head costs on a CPU: exported, in ONNX Runtime, from the array in memory to finished masks.

    python benchmarks/latency.py [--threads 1] [--repeats 25] [--json FILE]

Time does not depend on what was learned, so the weights are random (with offsets of some cells), and a fixed number of
instances gets masks. All models take turns on the same picture; medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from centermask.config import ModelConfig
from centermask.export.onnx import export
from centermask.nn.deform_conv import DeformConvPack
from centermask.nn.model import CenterMask
from centermask.predictor import Predictor

VARIANTS = ("dcn-dynamic", "conv-dynamic", "dcn-shape", "conv-shape")
PRESETS: dict[str, dict[str, Any]] = {
    "animals": {"size": 320, "top_k": 100, "classes": 7, "picture": (480, 640), "instances": 5},
    "nuclei": {"size": 448, "top_k": 400, "classes": 1, "picture": (520, 696), "instances": 50},
}


def exported(variant: str, preset: dict[str, Any], profile: str, folder: Path) -> Path:
    """An untrained model as a file."""
    names = tuple(f"class {number}" for number in range(preset["classes"]))
    config = ModelConfig.from_name(f"lite0-{variant}", class_names=names, category_ids=tuple(range(1, len(names) + 1)))
    config = replace(config, top_k=preset["top_k"], preprocess=replace(config.preprocess, size=preset["size"]))
    torch.manual_seed(0)
    model = CenterMask(config).eval()
    for module in model.modules():
        if isinstance(module, DeformConvPack):
            nn.init.normal_(module.conv_offset.weight, std=0.02)
    path = folder / f"{variant}-{preset['size']}.onnx"
    export(model, path, profile=profile)
    return path


def measure(preset: dict[str, Any], profile: str, threads: int, repeats: int) -> dict[str, Any]:
    """Median, fastest and parts of each variant."""
    image = np.random.default_rng(0).integers(0, 256, (*preset["picture"], 3), np.uint8)
    settings = {"score_threshold": 0.0, "max_overlap": 1.0, "max_instances": preset["instances"], "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        predictors = {
            name: Predictor(exported(name, preset, profile, Path(folder)), device="cpu", **settings)
            for name in VARIANTS
        }
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(repeats + 3):
        for name, predictor in predictors.items():
            start = time.perf_counter()
            found = predictor(image)
            if len(found) != preset["instances"]:
                raise AssertionError(f"{name} gives {len(found)} instances, not {preset['instances']}")
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": round(median(values), 2), "fastest_ms": round(min(values), 2)}
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--profile", default="fused", choices=("fused", "standard", "decomposed"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        name: measure(preset, arguments.profile, arguments.threads, arguments.repeats)
        for name, preset in PRESETS.items()
    }
    result["made_with"] = {
        "onnxruntime": onnxruntime.__version__,
        "threads": arguments.threads,
        "profile": arguments.profile,
        "presets": PRESETS,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
