"""How the benchmarks of the CPU time: every way of doing a thing once in each turn, in one process.

The order changes from turn to turn, so that nobody always finds the caches as the same other one left them; whoever is
slow stops after a few turns. Medians, and ratios of medians: a machine that has other work delays all of them alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from centermask import _core

Call = Callable[[], Any]

OURS = {
    "packed", "ours", "bf16", "avx2", "backward", "sparse heads", "outside the network", "network",
}  # fmt: skip
"""Names of calls that are ours; all others are peers."""

PACKAGES = ("numpy", "torch", "torchvision", "onnxruntime", "openvino", "opencv-python-headless", "pycocotools")


def interleave(calls: dict[str, Call], seconds: float, least: int = 3, most: int = 400) -> dict[str, float]:
    """Median milliseconds of each call.

    Args:
        calls: What to time, by name. Each is called once beforehand.
        seconds: For all of them together, about. A call that has had its share of it stops.
        least: Turns that everybody gets.
        most: Turns that nobody exceeds.
    """
    for call in calls.values():
        call()
    order = random.Random(0)
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    share = 1e3 * seconds / len(calls)
    for turn in range(most):
        waiting = [name for name in names if turn < least or sum(times[name]) < share]
        if not waiting:
            break
        order.shuffle(waiting)
        for name in waiting:
            start = time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(call: Call) -> float:
    """Megabytes by which the process grows at most during one call, looked at every 0.2 ms.

    What earlier calls have given back to the allocator and not to the system is not seen: to be measured in a process
    that has done little else (`in_fresh_process`).
    """
    before = resident_bytes()
    highest = before
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident_bytes())
            done.wait(2e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call()
    highest = max(highest, resident_bytes())
    done.set()
    watcher.join()
    del result
    return (highest - before) / 1e6


PEAK_SOURCE = """
#include <chrono>
#include <cstdio>
typedef float Vector __attribute__((vector_size(BYTES)));
// Rows of two vectors that never leave the registers: what a matrix product can reach at most. The values are any that
// toggle bits: with zeros this would measure a clock that no real work keeps.
__attribute__((noinline)) static void run(long turns, const float* a, const float* b, float* out) {
  constexpr int kLanes = BYTES / 4;
  Vector sum[ROWS][2] = {};
  for (long turn = 0; turn < turns; ++turn) {
    const Vector b0 = *(const Vector*)b, b1 = *(const Vector*)(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vector s = a[r] - Vector{};
      sum[r][0] += s * b0;
      sum[r][1] += s * b1;
    }
    asm volatile("" ::: "memory");
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) ((Vector*)out)[r] = sum[r][0] + sum[r][1];
}
int main() {
  alignas(64) static float a[16], b[2 * BYTES / 4], out[16 * BYTES];
  for (int i = 0; i < 16; ++i) a[i] = (i % 2 ? -1 : 1) * (0.7123f + 0.0313f * i);
  for (int i = 0; i < BYTES / 2; ++i) b[i] = (i % 3 ? -1 : 1) * (1.2323f + 0.0113f * i);
  double best = 0;
  for (int i = 0; i < 30; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run(1000000, a, b, out);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double speed = 1e6 * ROWS * 2 * (BYTES / 4) * 2 / seconds / 1e9;
    if (speed > best) best = speed;
  }
  std::printf("%f\\n", best);
}
"""


def matrix_peak(isa: str) -> float | None:
    """GFLOP/s of one core in float32 multiply-adds on registers alone, with the vectors of `isa`; None: no compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    flags = {"avx512": ["-mavx512f", "-mfma"], "avx2": ["-mavx2", "-mfma"]}.get(isa, [])
    size, rows = {"avx512": (64, 12), "avx2": (32, 6)}.get(isa, (16, 12 if platform.machine() == "aarch64" else 4))
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "peak.cc", Path(folder) / "peak"
        source.write_text(PEAK_SOURCE)
        defines = [f"-DBYTES={size}", f"-DROWS={rows}"]
        command = [compiler, "-O3", "-ffp-contract=fast", *flags, *defines, str(source), "-o", str(program)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            return None
        return float(subprocess.run([program], capture_output=True, text=True, check=True).stdout)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split("\t", 1) for line in lines if "\t" in line)
    values = {key.strip(): value.strip(" \t:") for key, value in fields.items()}
    name = values.get("model name", platform.machine())
    return f"{name} (family {values['cpu family']}, model {values['model']})" if "cpu family" in values else name


def machine() -> dict[str, Any]:
    """What a result must be read with: the processor, the instruction set in use, and everybody's versions."""
    versions = {"python": platform.python_version(), "centermask": _core.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": processor(), "cores": os.cpu_count(), "isa": _core.isa_used(), "versions": versions}


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row of the table, all peers together")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def finish(arguments: argparse.Namespace, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Writes the JSON file that `compare.py` reads: each row has `case` and `milliseconds` (by name)."""
    if arguments.json:
        result = {"benchmark": name, "threads": arguments.threads, **machine(), **more, "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def set_threads(threads: int) -> None:
    """For the peers that have a setting for the whole process."""
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(threads)
    try:
        import cv2
    except ImportError:
        pass
    else:
        cv2.setNumThreads(threads)


def report(
    arguments: argparse.Namespace, name: str, rows: list[dict[str, Any]], more: dict[str, str] | None = None
) -> None:
    """Prints the table, and writes the JSON file. `more`: further keys of a row, with the heads of their columns."""
    more = more or {}
    names = list(dict.fromkeys(name for row in rows for name in row["milliseconds"]))
    print(f"{processor()}, {_core.isa_used()}, threads {arguments.threads}\n")
    body = [
        [
            row["case"],
            *(number(row["milliseconds"].get(name)) for name in names),
            *(number(row.get(key)) for key in more),
        ]
        for row in rows
    ]
    print(table([["milliseconds", *names, *more.values()], *body]))
    finish(arguments, name, rows)


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits; a dash for what was not measured."""
    return "-" if value is None or np.isnan(value) else f"{value:.{digits}g}" if value < 1000 else f"{value:.0f}"
