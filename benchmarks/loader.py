"""How fast training samples are made, and how long a training waits for them.

    python benchmarks/loader.py DATA:SIZE ... [--samples 300] [--steps 8] [--batch-size 8] [--json FILE]

Pictures a second that one core makes, in CPU time, from pictures that are in memory (as `--cache` keeps them) and from
files. Then a training of `lite0-dcn-dynamic` on the CPU with 0, 1 and 2 worker processes: the share of its time that
the model waits for the next batch, once the workers have started.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from centermask.nn.model import CenterMask
from centermask.training.augment import TrainTransform
from centermask.training.data import CocoDataset, load_datasets
from centermask.training.loader import SampleKey, TrainDataset, make_loader
from centermask.training.mixing import MixOptions
from centermask.training.objective import LossTask, Objective, default_model_config
from centermask.training.settings import TrainConfig

MIXES = {"plain": None, "mosaic": MixOptions(0.5), "mosaic+copy-paste": MixOptions(0.5, copy_paste=0.5)}


def rate(data: CocoDataset, size: int, mixing: MixOptions | None, samples: int) -> float:
    """Samples a second of CPU time."""
    made = TrainDataset(data, TrainTransform(size), 0, mixing)
    order = np.random.default_rng(0).integers(len(data), size=samples)
    start = time.process_time()
    for position, picture in enumerate(order):
        made[SampleKey(int(picture), 0, position)]
    return samples / (time.process_time() - start)


def decode_rate(data: CocoDataset, samples: int) -> float:
    """Files decoded in a second of CPU time."""
    order = np.random.default_rng(0).integers(len(data), size=samples)
    start = time.process_time()
    for picture in order:
        data.image(int(picture))
    return samples / (time.process_time() - start)


def wait_share(data: CocoDataset, size: int, batch_size: int, workers: int, steps: int) -> float:
    """Share of the time of `steps` steps in which nothing but waiting for a batch is done."""
    config = TrainConfig(size=size, batch_size=batch_size)
    model = CenterMask(default_model_config(config, data.class_names, data.category_ids))
    objective = Objective(model, config).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)
    loader, _ = make_loader(
        data, TrainTransform(size), batch_size=batch_size, seed=0, workers=workers, mixing=MIXES["mosaic"]
    )
    generator = torch.Generator().manual_seed(0)
    batches = iter(loader)
    waited = whole = 0.0
    for step in range(-2, steps):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        count = torch.tensor(max(1.0, float(len(batch.labels))))
        torch.stack(list(objective(LossTask(batch, generator, count)).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 0:
            waited, whole = waited + ready - start, whole + time.perf_counter() - start
    return waited / whole


def measure(path: Path, size: int, samples: int, steps: int, batch_size: int) -> dict[str, Any]:
    """All figures of one data set."""
    cv2.setNumThreads(0)
    limit = math.ceil(size / TrainConfig().scale[0])
    files = load_datasets([path], "train", max_side=limit)
    data = load_datasets([path], "train", cache=True, max_side=limit)
    data.fill_cache()
    return {
        "data": path.name,
        "size": size,
        "batch_size": batch_size,
        "instances_a_picture": round(float(data.class_counts().sum()) / len(data), 1),
        "pictures_per_s_a_core": {name: round(rate(data, size, mix, samples), 1) for name, mix in MIXES.items()},
        "files_decoded_per_s_a_core": round(decode_rate(files, samples), 1),
        "wait_share": {str(n): round(wait_share(data, size, batch_size, n, steps), 4) for n in (0, 1, 2)},
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="DATA:SIZE")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for entry in arguments.data:
        path, _, size = entry.rpartition(":")
        results.append(measure(Path(path), int(size), arguments.samples, arguments.steps, arguments.batch_size))
        print(json.dumps(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
