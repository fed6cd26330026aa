"""`centermask export` itself; its options stand in `cli.py`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from centermask.export.onnx import export
from centermask.export.triton import write_repository


def run(options: argparse.Namespace) -> int:
    """Writes the file, and a model repository if one is asked for; returns the exit code."""
    start = time.perf_counter()
    report = export(
        Path(options.checkpoint),
        Path(options.output),
        profile=options.profile,
        precision=options.precision,
        masks=options.masks,
        size=options.size,
        opset=options.opset,
        calibration=options.calibration,
        score_threshold=options.score,
        max_overlap=options.max_overlap,
        class_agnostic=options.class_agnostic,
        training_data=options.training_data,
        ap=_average_precisions(options.ap),
    )
    print(report.table())
    size = Path(options.output).stat().st_size / 1e6
    print(f"wrote {options.output}: {size:.1f} MB, verified, in {time.perf_counter() - start:.0f} s")
    if options.triton:
        print(f"wrote {write_repository(options.output, options.triton)}")
    return 0


def _average_precisions(entries: Sequence[str]) -> dict[str, float]:
    """The figures of the files that `--ap NAME=FILE` names."""
    found: dict[str, float] = {}
    for entry in entries:
        name, separator, file = entry.partition("=")
        if not separator:
            raise ValueError(f"--ap must be NAME=FILE, got {entry!r}")
        try:
            figures = json.loads(Path(file).read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: not JSON: {error}") from None
        if not isinstance(figures, dict):
            raise ValueError(f"{file}: expected the figures of `eval --json`, got {type(figures).__name__}")
        keys = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
        found |= {f"{name} {key}": figures[key] for key in keys if figures.get(key) is not None}
    return found
