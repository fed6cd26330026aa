"""Many training runs, several at a time, each leaving one JSON file; what is there already is not made again."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from figures import rows

from centermask.nn.model import CenterMask
from centermask.predictor import Predictor
from centermask.training.data import CocoDataset
from centermask.training.evaluate import evaluate
from centermask.training.torch_network import TorchNetwork

Run = Callable[[str, int, Path], dict[str, Any]]
"""(name, seed, folder for the run's files) -> its figures."""


def run_all(
    run: Run,
    jobs: Sequence[tuple[str, int]],
    out: Path,
    options: Mapping[str, Any],
    *,
    parallel: int,
    threads: int | None,
    minutes: float,
) -> bool:
    """Makes the runs that OUT does not hold yet.

    Args:
        run: Picklable.
        jobs: In the order in which they are begun.
        out: Gets `<name>-<seed>.json`, written when the run is over.
        options: What all runs are made with; a file that was made with others is not taken for this study's.
        parallel: Processes.
        threads: CPU threads of each.
        minutes: Time for all. No run is begun that would end later, if it took as long as the longest before it.

    Returns:
        Whether none failed. A run that fails is reported and the others go on.

    Raises:
        ValueError: OUT holds runs that were made with other options.
    """
    out.mkdir(parents=True, exist_ok=True)
    options = json.loads(json.dumps(dict(options)))  # as it reads in a file: lists for tuples
    wanted = {(name, seed) for name, seed in jobs}
    for row in rows(out):
        if (row["name"], row["seed"]) in wanted and row.get("options") != options:
            raise ValueError(
                f"{out}: {row['name']}-{row['seed']} was made with {row.get('options')}, not {options}: "
                "choose another OUT"
            )
    context = multiprocessing.get_context("spawn")
    lock, place, longest = context.Lock(), context.Value("i", 0, lock=False), context.Value("d", 0.0, lock=False)
    arguments = (run, list(jobs), out, options, lock, place, longest, threads, time.time() + 60 * minutes)
    if threads:
        # Read when a child imports its libraries; torch.set_num_threads does not reach all of them.
        os.environ["OMP_NUM_THREADS"] = str(threads)
    processes = [context.Process(target=_work, args=arguments) for _ in range(parallel)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return not any(process.exitcode for process in processes)


def _work(
    run: Run,
    jobs: list[tuple[str, int]],
    out: Path,
    options: dict[str, Any],
    lock: Any,
    place: Any,
    longest: Any,
    threads: int | None,
    end: float,
) -> None:
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    failed = False
    while time.time() + longest.value < end:
        with lock:
            number = place.value
            place.value += 1
        if number >= len(jobs):
            break
        name, seed = jobs[number]
        path = out / f"{name}-{seed}.json"
        if path.exists():
            continue
        started = time.monotonic()
        try:
            row = run(name, seed, out / f"{name}-{seed}")
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        seconds = time.monotonic() - started
        with lock:
            longest.value = max(longest.value, seconds)
        taken = {"seconds": round(seconds, 1), "torch": torch.__version__, "options": options}
        row = {"name": name, "seed": seed, **taken, **row}
        temporary = path.with_suffix(".part")
        # A line for each figure; a course of hundreds of steps on one.
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
        temporary.write_text("{\n " + ",\n ".join(lines) + "\n}\n")
        temporary.replace(path)
    raise SystemExit(int(failed))


def evaluate_on_cpu(model: CenterMask, data: CocoDataset) -> dict[str, Any]:
    """What the training loop may call: on a GPU, cuDNN would compile kernels for every new size of a picture.

    It takes torch's number of threads throughout, so that many runs can share a machine.
    """
    threads = torch.get_num_threads()
    network = TorchNetwork(copy.deepcopy(model).cpu(), threads=threads)
    figures, _ = evaluate(Predictor(network, score_threshold=0.0, threads=threads), data)
    values = figures.to_json()
    # A time taken beside other runs says nothing.
    return {key: value for key, value in values.items() if key not in ("per_class", "latency_ms")}
