"""Does an exported file give what PyTorch gives? The error of each output, on noise and on a photograph."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray

from centermask.config import PreprocessConfig
from centermask.metadata import ModelFileError
from centermask.nn.model import CenterMask
from centermask.preprocess import load_image, prepare
from centermask.session import NetworkOutput, OnnxNetwork

SCORE_MARGIN = 1e-3
"""An instance may be missing on one side if its score is this close to the threshold, or to the last of the top K."""

TOLERANCES = {"fp32": 5e-4, "fp16": 3e-2, "int8": 10.0}
"""Largest error that passes, relative to the output's largest value. float32 sums of some thousand terms in another
order differ by about 1e-5 in a layer and more after sixty; a weight in float16 is off by up to 5e-4. In 8 bits single
values say little: what such a file is worth, `centermask eval` tells."""


class VerifyError(RuntimeError):
    """The exported file gives other results than the model."""


@dataclass(frozen=True)
class OutputError:
    """The largest deviation of one output.

    Attributes:
        name: Of the output.
        absolute: Largest absolute difference.
        relative: That, divided by the largest absolute value that PyTorch gave.
    """

    name: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        errors: One for each output.
        matched: Instances that both sides found.
        unmatched: Instances that one side alone found and whose score is not at a threshold.
        tolerance: Largest relative error that passes.
        most_unmatched: Largest share of instances on one side alone that passes.
    """

    errors: tuple[OutputError, ...]
    matched: int
    unmatched: int
    tolerance: float
    most_unmatched: float = 0.01

    @property
    def passed(self) -> bool:
        """All errors within the tolerance, and few instances on one side alone."""
        return (
            all(error.relative <= self.tolerance for error in self.errors)
            and self.unmatched <= self.most_unmatched * (self.matched + self.unmatched)
            and self.matched > 0
        )

    def table(self) -> str:
        """For people."""
        lines = [f"{'output':<16}{'largest error':>15}{'relative':>12}"]
        lines += [f"{error.name:<16}{error.absolute:>15.2e}{error.relative:>12.1e}" for error in self.errors]
        lines.append(f"{self.matched} instances agree, {self.unmatched} do not; relative tolerance {self.tolerance:g}")
        return "\n".join(lines)


def verify(
    model: CenterMask,
    path: str | os.PathLike[str],
    *,
    score_threshold: float = 0.05,
    weights: str = "fp32",
    preprocess: PreprocessConfig | None = None,
) -> Report:
    """Runs both on the same inputs: noise, square and not, one and several; and the sample photograph.

    Args:
        model: In eval mode.
        path: The exported file.
        score_threshold: The graph's own.
        weights: `fp32`, `fp16` or `int8`: how the file stores them, which sets the tolerance.
        preprocess: How pictures become the file's input; the model's own way if None.

    Raises:
        VerifyError: An error is beyond the tolerance; the message has the whole report.
    """
    networks = [OnnxNetwork(path, device="cpu")]
    if networks[0].info.profile == "fused" and networks[0].uses_library and not networks[0].makes_rle:
        try:
            networks.append(OnnxNetwork(path, device="cpu", library=False))
        except ModelFileError:
            # A runtime without DeformConv, or a file of opset 18, which does not define it.
            known = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 25)
            if known and max(entry.version for entry in onnx.load(path).opset_import if not entry.domain) >= 19:
                raise
    rows: list[tuple[NetworkOutput, NetworkOutput]] = []
    for images in sample_inputs(model, preprocess):
        expected = _run(model, images, score_threshold)
        rows += [(expected, network(images)) for network in networks]
    report = compare(rows, score_threshold, TOLERANCES[weights])
    if weights == "int8":
        report = replace(report, most_unmatched=1.0)
    if not report.passed:
        raise VerifyError(f"{os.fspath(path)}: differs from PyTorch beyond the tolerance\n{report.table()}")
    return report


def finds_instances(model: CenterMask, score_threshold: float, preprocess: PreprocessConfig | None = None) -> bool:
    """Whether a model (in eval mode) finds anything in the inputs that `verify` compares on."""
    return any(_run(model, images, score_threshold).count.any() for images in sample_inputs(model, preprocess))


def _run(model: CenterMask, images: NDArray[np.float32], score_threshold: float) -> NetworkOutput:
    with torch.inference_mode():
        values = model.deploy(torch.from_numpy(images).to(next(model.parameters()).device), score_threshold)
    arrays: list[Any] = [None if value is None else value.cpu().numpy() for value in values]
    return NetworkOutput(*arrays)


def sample_inputs(model: CenterMask, preprocess: PreprocessConfig | None = None) -> list[NDArray[np.float32]]:
    """Preprocessed pictures of several sizes, or of the one that `preprocess` fixes; the same in every run."""
    preprocess = preprocess or model.config.preprocess
    generator = np.random.default_rng(20260101)
    shapes = [(2, 3, 96, 160), (1, 3, 256, 256)]
    if preprocess.policy in ("fixed", "fixed_index"):
        shapes = [(2, 3, preprocess.size, preprocess.size)]
    inputs = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    photograph = Path(str(resources.files("centermask") / "models" / "sample.jpg"))
    if photograph.is_file():
        image = load_image(photograph)
        inputs += [prepare(part, preprocess)[0][None] for part in (image, image[:300])]
    return inputs


def compare(pairs: list[tuple[NetworkOutput, NetworkOutput]], score_threshold: float, tolerance: float) -> Report:
    """The errors of outputs `actual` against `expected`, for any number of (expected, actual) pairs.

    Rows are ordered by score, so that two nearly equal scores may exchange them: instances are matched by label and
    place first.
    """
    worst: dict[str, list[float]] = {}
    matched = unmatched = 0
    for expected, actual in pairs:
        if expected.mask_features is not None and actual.mask_features is not None:
            _note(worst, "mask_features", expected.mask_features, actual.mask_features)
        for n in range(len(expected.count)):
            rows, columns, lonely = match(expected, actual, n, score_threshold)
            matched, unmatched = matched + len(rows), unmatched + lonely
            for name in ("boxes", "scores", "mask_params"):
                a, b = getattr(expected, name), getattr(actual, name)
                if a is not None:
                    _note(worst, name, a[n, rows], b[n, columns])
    errors = tuple(
        OutputError(name, worst[name][0], worst[name][0] / max(worst[name][1], 1e-12))
        for name in NetworkOutput._fields
        if name in worst
    )
    return Report(errors, matched, unmatched, tolerance)


def _note(worst: dict[str, list[float]], name: str, expected: NDArray[Any], actual: NDArray[Any]) -> None:
    entry = worst.setdefault(name, [0.0, 0.0])
    if expected.size:
        difference = np.abs(expected - actual).max()
        entry[0] = max(entry[0], float(difference) if np.isfinite(difference) else float("inf"))
        entry[1] = max(entry[1], float(np.abs(expected).max()))


def match(
    expected: NetworkOutput, actual: NetworkOutput, n: int, score_threshold: float
) -> tuple[list[int], list[int], int]:
    """Rows of both sides that are the same instance, and how many others there are that no threshold explains."""
    counts = int(expected.count[n]), int(actual.count[n])
    free = list(range(counts[1]))
    rows, columns = [], []
    lonely: list[float] = []
    for row in range(counts[0]):
        same = [column for column in free if actual.labels[n, column] == expected.labels[n, row]]
        distance = [float(np.abs(actual.boxes[n, column] - expected.boxes[n, row]).max()) for column in same]
        # Two peaks are at least two cells apart, so that half a cell of centre names one of them.
        if distance and min(distance) < 2.0:
            best = same[int(np.argmin(distance))]
            free.remove(best)
            rows.append(row)
            columns.append(best)
        else:
            lonely.append(float(expected.scores[n, row]))
    lonely += [float(actual.scores[n, column]) for column in free]
    limits = [score_threshold]
    for output, count in zip((expected, actual), counts, strict=True):
        if count == output.scores.shape[1]:
            limits.append(float(output.scores[n, -1]))
    unexplained = sum(1 for score in lonely if min(abs(score - limit) for limit in limits) > SCORE_MARGIN)
    return rows, columns, unexplained
