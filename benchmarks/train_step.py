"""What a training step of `lite0-dcn-dynamic` costs: against torchvision's DCN in its place, and against the conv neck.

    python benchmarks/train_step.py [--size 320] [--batch-size 4 8] [--threads 1 2] [--repeats 15] [--json FILE]

A step is what the loop does: network, losses, all gradients, clipping, AdamW; on made-up pictures with three objects
each. The variants take turns, step by step, so that what else the machine does strikes them alike; medians, and the
median of the ratios within each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from centermask.nn.deform_conv import DeformConvPack
from centermask.nn.model import CenterMask
from centermask.training.loader import TrainBatch
from centermask.training.objective import LossTask, Objective, default_model_config
from centermask.training.optimizer import parameter_groups
from centermask.training.settings import TrainConfig

OBJECTS = 3
VARIANTS = ("dcn", "torchvision-dcn", "conv")


class TorchvisionPack(nn.Module):
    """A `DeformConvPack` that samples and convolves with torchvision's operator."""

    def __init__(self, ours: DeformConvPack) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.ours.places(x)
        settings = {"stride": self.ours.stride, "padding": self.ours.padding, "dilation": self.ours.dilation}
        result = torchvision.ops.deform_conv2d(x, offset, self.ours.weight, self.ours.bias, mask=mask, **settings)
        return result.relu() if self.ours.activation == "relu" else result


def made_up_batch(size: int, count: int) -> TrainBatch:
    """Noise with boxes of a third of the picture's side."""
    generator = torch.Generator().manual_seed(0)
    cells, total = size // 4, count * OBJECTS
    corner = torch.rand(total, 2, generator=generator) * size * 2 / 3
    boxes = torch.cat([corner, corner + size / 3], dim=1)
    rows = torch.arange(cells) * 4 + 2
    inside = [(rows >= boxes[:, k, None]) & (rows < boxes[:, k + 2, None]) for k in (0, 1)]
    nothing = torch.zeros(0, dtype=torch.int64)
    return TrainBatch(
        image=torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8),
        boxes=boxes,
        labels=torch.arange(total) % 7,
        masks=(inside[1][:, :, None] & inside[0][:, None, :]).to(torch.uint8) * 255,
        batch_index=torch.arange(count).repeat_interleave(OBJECTS),
        ignore=torch.zeros(0, cells, cells, dtype=torch.uint8),
        ignore_labels=nothing,
        ignore_batch_index=nothing,
        known_classes=torch.ones(count, 7, dtype=torch.bool),
        image_ids=torch.arange(count),
    )


class Stepper:
    """One variant, ready to take steps."""

    def __init__(self, variant: str, size: int, batch: TrainBatch) -> None:
        neck = "conv" if variant == "conv" else "dcn"
        config = TrainConfig(model=f"lite0-{neck}-dynamic", size=size, batch_size=len(batch.image))
        torch.manual_seed(0)
        names = tuple("abcdefg")
        model = CenterMask(default_model_config(config, names, tuple(range(1, 8))))
        for module in list(model.neck.modules()):
            if isinstance(module, DeformConvPack):
                # As after some training: where samples fall on whole pixels, a kernel might get off cheaply.
                nn.init.normal_(module.conv_offset.weight, std=0.01)
        if variant == "torchvision-dcn":
            for module in list(model.neck.modules()):
                for name, child in list(module.named_children()):
                    if isinstance(child, DeformConvPack):
                        setattr(module, name, TorchvisionPack(child))
        self.objective = Objective(model, config).train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.objective, config, 1e-4))
        self.batch = batch
        self.count = torch.tensor(float(len(batch.labels)))

    def step(self) -> tuple[float, float]:
        """Seconds that it took, and the loss."""
        generator = torch.Generator().manual_seed(0)
        start = time.perf_counter()
        terms = self.objective(LossTask(self.batch, generator, self.count))
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start, float(loss.detach())


def measure(size: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Medians and ratios of all variants."""
    batch = made_up_batch(size, batch_size)
    steppers = {name: Stepper(name, size, batch) for name in VARIANTS}
    first = {name: stepper.step()[1] for name, stepper in steppers.items()}  # warms up, too
    # The same weights and cells: the sums differ in their order only.
    if abs(first["dcn"] - first["torchvision-dcn"]) > 1e-3 * abs(first["dcn"]):
        raise AssertionError(f"the two operators do not compute the same: {first}")
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(repeats):
        for name, stepper in steppers.items():
            times[name].append(stepper.step()[0])
    ratio = {
        key: median(a / b for a, b in zip(times[one], times[other], strict=True))
        for key, one, other in (("torchvision/dcn", "torchvision-dcn", "dcn"), ("dcn/conv", "dcn", "conv"))
    }
    return {
        "size": size,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "median_s": {name: round(median(values), 4) for name, values in times.items()},
        "best_s": {name: round(min(values), 4) for name, values in times.items()},
        "pictures_per_s": {name: round(batch_size / median(values), 2) for name, values in times.items()},
        "ratio": {key: round(value, 3) for key, value in ratio.items()},
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "cpu": cpu_name(),
    }


def cpu_name() -> str:
    """As Linux names it."""
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4])
    parser.add_argument("--threads", type=int, nargs="+", default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    for threads, batch_size in product(arguments.threads, arguments.batch_size):
        torch.set_num_threads(threads)
        result = measure(arguments.size, batch_size, arguments.repeats)
        results.append(result)
        print(threads, batch_size, result["median_s"], result["ratio"], result["pictures_per_s"], flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
