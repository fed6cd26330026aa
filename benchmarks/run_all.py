"""Runs the benchmarks of the CPU one after the other, and writes the tables of docs/performance.md.

    python benchmarks/run_all.py [--out benchmarks/results/cpu] [--docs docs/performance.md] [--seconds 2]

Some six minutes on a machine with nothing else to do. Leaves one JSON file for each benchmark (for compare.py), and
puts the tables between the two marks of the document: what was wanted and what came out, then each benchmark's own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interleaved

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables: made by benchmarks/run_all.py -->", "<!-- end of tables -->"

RUNS = {
    "deform_conv2d": ("deform_conv2d.py", "--threads", "1"),
    "deform_conv2d_2": ("deform_conv2d.py", "--threads", "2", "--no-torchvision"),
    "decode": ("decode.py", "--threads", "1"),
    "masks": ("masks.py", "--threads", "1"),
    "preprocess": ("preprocess.py", "--threads", "1"),
    "predict": ("predict.py", "--threads", "2"),
}

Results = dict[str, dict[str, Any]]


@dataclass
class Goal:
    """Something wanted, as `value <= most` (or `>= most` with at_least)."""

    what: str
    unit: str
    most: float
    value: Callable[[Results], float]
    at_least: bool = False

    def row(self, results: Results) -> list[str]:
        try:
            value = self.value(results)
        except (KeyError, StopIteration):
            return [self.what, self.wanted(), "not measured", "-"]
        met = value >= self.most if self.at_least else value <= self.most
        return [self.what, self.wanted(), f"{interleaved.number(value)}{self.unit}", "yes" if met else "no"]

    def wanted(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.most:g}{self.unit}"


def ratio(name: str, which: str = "mean") -> Callable[[Results], float]:
    return lambda results: float(results["deform_conv2d"]["ratios"][name][which])


def time_of(benchmark: str, case: str, name: str, over: str | None = None) -> Callable[[Results], float]:
    def value(results: Results) -> float:
        row = next(row for row in results[benchmark]["rows"] if row["case"].startswith(case))
        return float(row["milliseconds"][name]) / (row["milliseconds"][over] if over else 1)

    return value


def most(benchmark: str, key: str) -> Callable[[Results], float]:
    return lambda results: max(float(row[key]) for row in results[benchmark]["rows"])


GOALS = [
    Goal("DCN forward, constant weights / dense conv2d, geometric mean", "", 0.95, ratio("packed / dense")),
    Goal("the same, worst shape", "", 1.15, ratio("packed / dense", "largest")),
    Goal("DCN forward with bfloat16 products / dense conv2d, geometric mean", "", 0.60, ratio("bf16 / dense")),
    Goal("the same, largest relative error", "", 1e-2, most("deform_conv2d", "bf16 error")),
    Goal("DCN forward / fastest other DCN, geometric mean", "", 0.60, ratio("packed / fastest deformable peer")),
    Goal("DCN backward / torchvision's, geometric mean", "", 1 / 15, ratio("backward / torchvision backward")),
    Goal("DCN backward / our forward that packs its weights, worst shape", "", 3, ratio("backward / ours", "largest")),
    Goal("DCN forward, 1 thread / 2, worst shape", "", 1.8,
         lambda results: min(float(row["scaling"]) for row in results["deform_conv2d"]["rows"]), at_least=True),
    Goal("DCN forward, time by AVX-512 / by AVX2, geometric mean", "", 0.55, ratio("packed / avx2"), at_least=True),
    Goal("memory beyond output and one copy of x, MB", "", 4, most("deform_conv2d", "memory")),
    Goal("decode 80x128x128, K=100", " ms", 1.0, time_of("decode", "80x128x128", "ours")),
    Goal("100 instances at 1920x1080 to RLE, dynamic head", " ms", 5, time_of("masks", "dynamic", "ours")),
    Goal("the same, shape head", " ms", 5, time_of("masks", "shape", "ours")),
    Goal("300 instances at 4000x3000, memory, MB", "", 64, most("masks", "memory")),
    Goal("preprocess 1920x1080 -> 512", " ms", 2, time_of("preprocess", "1920x1080 -> 512", "ours")),
    Goal("the same / OpenCV + NumPy", "", 0.5, time_of("preprocess", "1920x1080 -> 512", "ours", "OpenCV + NumPy")),
    Goal("Predictor without its network, 1920x1080, 20 instances, 2 threads", " ms", 5,
         time_of("predict", "1920x1080", "outside the network")),
]  # fmt: skip


def run(name: str, out: Path, seconds: float) -> str:
    """The benchmark's table; its JSON file lies in `out`."""
    script, *options = RUNS[name]
    command = [sys.executable, str(HERE / script), *options, "--seconds", str(seconds)]
    print("$", *command[1:], flush=True)
    text = subprocess.run(
        [*command, "--json", str(out / f"{name}.json")], stdout=subprocess.PIPE, text=True, check=True
    )
    print(text.stdout, flush=True)
    lines = text.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    return "\n".join(lines[first:])


def document(results: Results, tables: dict[str, str]) -> str:
    first = next(iter(results.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    peak = results["deform_conv2d"]["peak_gflops"] or 0
    parts = [
        f"Measured {datetime.date.today()} with `python benchmarks/run_all.py`, medians: {first['processor']}, "
        f"{first['cores']} cores, {first['isa']}; registers' peak {peak:.0f} GFLOP/s a core in float32; {versions}.",
        interleaved.table([["what", "goal", "measured", "met"], *(goal.row(results) for goal in GOALS)]),
    ]
    for name, text in tables.items():
        script, *options = RUNS[name]
        parts += [f"`benchmarks/{script} {' '.join(options)}`", text]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs" / "performance.md")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row, all peers together")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tables = {name: run(name, arguments.out, arguments.seconds) for name in RUNS}
    results = {name: json.loads((arguments.out / f"{name}.json").read_text()) for name in RUNS}
    text = document(results, tables)
    print(text)
    if arguments.docs.is_file():
        before, rest = arguments.docs.read_text().split(BEGIN)
        after = rest.split(END)[1]
        arguments.docs.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
