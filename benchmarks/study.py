"""Many training runs, several at a time, each leaving one JSON file; what is there already is not made again."""

from __future__ import annotations

import copy
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from centermask.nn.model import CenterMask
from centermask.training.data import CocoDataset
from centermask.training.evaluate import evaluate_model

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
        minutes: No run is begun after this time.

    Returns:
        Whether none failed. A run that fails is reported and the others go on.

    Raises:
        ValueError: OUT holds runs that were made with other options.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = {(name, seed) for name, seed in jobs}
    for row in rows(out):
        if (row["name"], row["seed"]) in wanted and row.get("options") != options:
            raise ValueError(
                f"{out}: {row['name']}-{row['seed']} was made with {row.get('options')}, not {options}: "
                "choose another OUT"
            )
    context = multiprocessing.get_context("spawn")
    lock, place = context.Lock(), context.Value("i", 0, lock=False)
    arguments = (run, list(jobs), out, dict(options), lock, place, threads, time.time() + 60 * minutes)
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
    threads: int | None,
    end: float,
) -> None:
    if threads:
        torch.set_num_threads(threads)
    failed = False
    while time.time() < end:
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
        taken = {"seconds": time.monotonic() - started, "torch": torch.__version__, "options": options}
        row = {"name": name, "seed": seed, **taken, **row}
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(row, indent=1))
        temporary.replace(path)
    raise SystemExit(int(failed))


def evaluate_on_cpu(model: CenterMask, data: CocoDataset) -> dict[str, Any]:
    """What the training loop may call: on a GPU, cuDNN would compile kernels for every new size of a picture."""
    return evaluate_model(copy.deepcopy(model).cpu(), data)


def rows(out: Path) -> list[dict[str, Any]]:
    """All runs that are there, by name and seed."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*-[0-9]*.json"))]
