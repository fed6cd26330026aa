"""How benchmarks/gpu.py times."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


class Timer:
    """Times calls in turn. Each entry is a list of calls on different inputs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # for each measurement of all peers together

    def graph_of(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def kernel_time(self, calls: Sequence[Call]) -> float:
        """Milliseconds that the kernels of one call run, without the gaps between them, by the profiler.

        torchvision's kernels go to the legacy stream whatever the current one is, so that a graph captures only the
        matrix products between them: replaying it tells nothing.
        """
        times = []
        for _ in range(3):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for call in calls:
                    call()
                torch.cuda.synchronize()
            with tempfile.TemporaryDirectory() as folder:
                trace = Path(folder) / "trace.json"
                profile.export_chrome_trace(str(trace))
                events = json.loads(trace.read_text())["traceEvents"]
            on_device = [e["dur"] for e in events if e.get("cat") in ("kernel", "gpu_memset", "gpu_memcpy")]
            times.append(sum(on_device) / 1e3 / len(calls))
        return statistics.median(times)

    def in_turn(self, runs: dict[str, Callable[[], int]]) -> dict[str, float]:
        """Each run makes some calls and returns how many; median milliseconds of one call."""
        for run in runs.values():
            run()
        torch.cuda.synchronize()
        samples: dict[str, list[float]] = {name: [] for name in runs}
        spent = dict.fromkeys(runs, 0.0)
        start = time.perf_counter()
        turn = 0
        while turn < 5 or (time.perf_counter() - start < self.seconds and turn < 200):
            for name, run in runs.items():
                if turn >= 5 and spent[name] > 1e3 * self.seconds:
                    continue
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record()
                count = run()
                end.record()
                end.synchronize()
                spent[name] += begin.elapsed_time(end)
                samples[name].append(begin.elapsed_time(end) / count)
            turn += 1
        return {name: statistics.median(values) for name, values in samples.items()}

    def measure(self, calls: dict[str, list[Call]]) -> dict[str, dict[str, float]]:
        def eager(own: list[Call]) -> Callable[[], int]:
            def run() -> int:
                for call in own:
                    call()
                return len(own)

            return run

        def replay(graph: torch.cuda.CUDAGraph, count: int) -> Callable[[], int]:
            def run() -> int:
                graph.replay()
                return count

            return run

        eager_runs = {name: eager(own) for name, own in calls.items()}
        result = {name: {"call": value} for name, value in self.in_turn(eager_runs).items()}
        graphs = {}
        for name, own in calls.items():
            if name.startswith("torchvision"):
                kernels = self.kernel_time(own)
                if kernels > 0:  # else the profiler has seen nothing
                    result[name]["kernels"] = kernels
                continue
            try:
                graphs[name] = replay(self.graph_of(own), len(own))
            except RuntimeError as error:  # a peer that cannot be captured
                result[name]["graph_error"] = str(error).splitlines()[0]  # type: ignore[assignment]
                torch.cuda.synchronize()
        for name, value in self.in_turn(graphs).items():
            result[name]["graph"] = value
        return result
