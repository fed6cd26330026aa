"""Why trainings of this line did not converge: the old settings, one at a time, on the same data and seeds.

    python benchmarks/convergence.py DATA [--out DIR] [--seeds 3] [--parallel 1] [--steps 1000] [--plot FILE.png]

`shipped` is centermask's recipe without mosaic and without the average of weights, so that every run is judged as it
is. The names below it put one old setting in its place; `old` has all of them, and `old-but-X` all but X (on the first
seed only). A run ends where a loss or a gradient stops being finite. Prints a table and leaves OUT/<name>-<seed>.json
with the losses on the way.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from figures import convergence, rows
from study import evaluate_on_cpu, run_all
from torch import Tensor, nn

from centermask.nn.deform_conv import DeformConvPack
from centermask.nn.model import CenterMask
from centermask.training import objective as objective_module
from centermask.training.augment import TrainTransform
from centermask.training.checkpoint import load_checkpoint
from centermask.training.data import load_datasets
from centermask.training.loader import make_loader
from centermask.training.objective import LossTask, Objective, default_model_config
from centermask.training.optimizer import learning_rate_factor, parameter_groups
from centermask.training.settings import TrainConfig

BATCH = 8
EVERY = 10
"""Steps between two points of a run's course."""
OLD: dict[str, Any] = {
    "one-sided-clamp": {"focal": "one-sided"},
    "one-sided-clamp-fp16": {"focal": "one-sided-fp16"},
    "random-offsets": {"offsets": "random"},
    "offsets-at-full-rate": {"offset_rate": 1.0},
    "padding-0": {"padding": 0},
    "rate-of-batch-128": {"rate": "unscaled"},
    "sgd-0.02": {"rate": "sgd"},
    "no-warm-up": {"warmup": 0},
    "no-clipping": {"clip": 0.0},
}
ALL_OLD = {"focal": "one-sided", "offsets": "random", "padding": 0, "rate": "sgd", "warmup": 0, "clip": 0.0}
SHIPPED = {
    "neck": "dcn",
    "focal": "logits",
    "offsets": "zero",
    "padding": 1,
    "rate": "scaled",
    "warmup": 100,
    "clip": 10.0,
}
CASES: dict[str, dict[str, Any]] = {
    "shipped": {},
    "shipped-conv": {"neck": "conv"},
    "shipped-no-lateral": {"lateral": False},  # what padding-0 is to be compared with: its maps fit no lateral
    **OLD,
    "old": ALL_OLD,
    **{f"old-but-{key}": {k: v for k, v in ALL_OLD.items() if k != key} for key in ALL_OLD},
}


def one_sided_focal(dtype: torch.dtype, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The focal loss on probabilities that are kept from 0 but not from 1, as CenterNet's ports had it."""
    p = torch.sigmoid(logits.to(dtype)).float().clamp(min=1e-4)
    positive = (target == 1).float()
    loss = -positive * (1 - p) ** 2 * p.log() - (1 - positive) * (1 - target) ** 4 * p**2 * (1 - p).log()
    return (loss if weight is None else loss * weight).sum()


def build(settings: dict[str, Any], config: TrainConfig, classes: Any, init_from: str) -> CenterMask:
    """The model with its neck as the settings say."""
    no_lateral = settings["padding"] == 0 or not settings.get("lateral", True)
    model_config = default_model_config(config, *classes)
    # Squares, so that a neck that loses cells at each stage is not left with none on a narrow picture.
    model_config = replace(model_config, preprocess=replace(model_config.preprocess, policy="fixed"))
    if no_lateral:
        model_config = replace(model_config, lateral=False)
    model = CenterMask(model_config, pretrained=not init_from)
    if init_from:
        weights = {k: v.float() for k, v in load_checkpoint(init_from).model.items() if k.startswith("backbone.")}
        model.load_state_dict(weights, strict=False)
    for module in model.neck.modules():
        if isinstance(module, DeformConvPack):
            if settings["offsets"] == "random":
                nn.init.kaiming_normal_(module.conv_offset.weight)
            pad = (settings["padding"],) * 2
            module.padding, module.conv_offset.padding = pad, pad
    return model


def make_optimizer(settings: dict[str, Any], objective: Objective) -> torch.optim.Optimizer:
    """AdamW at our rate scaled to the batch or left as for 128 pictures, or SGD at CenterNet-better's 0.02."""
    kind = settings["rate"]
    if kind == "sgd":
        return torch.optim.SGD(objective.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    rate = 1e-3 / 16 * (BATCH if kind == "scaled" else 128)
    config = replace(objective.config, offset_rate=settings["offset_rate"])
    fused = next(objective.parameters()).is_cuda
    return torch.optim.AdamW(parameter_groups(objective, config, rate), fused=fused or None)


def run(arguments: argparse.Namespace, name: str, seed: int, out: Path) -> dict[str, Any]:
    """One run of `steps` steps."""
    settings = {**SHIPPED, "offset_rate": arguments.offset_rate, **CASES[name]}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    # Without padding the maps do not lie on the masks' cells any more: boxes alone can be learned then.
    head = "dynamic" if settings["padding"] else "none"
    config = TrainConfig(model=f"lite0-{settings['neck']}-{head}", size=arguments.size, batch_size=BATCH)
    data = load_datasets([arguments.data], "train", max_side=2 * arguments.size)
    data.fill_cache()
    model = build(settings, config, (tuple(data.class_names), tuple(data.category_ids)), arguments.init_from)
    model.to(device)
    objective = Objective(model, config).to(device).train()
    ours = objective_module.focal_loss
    if settings["focal"] != "logits":
        dtype = torch.float16 if settings["focal"].endswith("fp16") else torch.float32
        objective_module.focal_loss = partial(one_sided_focal, dtype)
    try:
        figures = train(settings, objective, data, seed, arguments, device)
    finally:
        objective_module.focal_loss = ours
    if figures["broke_at"] is None:
        val = load_datasets([arguments.data], "val", classes=data.class_names)
        result = evaluate_on_cpu(model.eval(), val)
        figures |= {key: result.get(key) for key in ("mask_ap", "mask_ap50", "box_ap", "box_ap50")}
    return {**figures, "settings": settings, "device": device.type, "size": arguments.size, "batch": BATCH}


def train(
    settings: dict[str, Any],
    objective: Objective,
    data: Any,
    seed: int,
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    optimizer = make_optimizer(settings, objective)
    rates = [group["lr"] for group in optimizer.param_groups]
    transform = TrainTransform(arguments.size)
    loader, sampler = make_loader(
        data,
        transform,
        batch_size=BATCH,
        seed=seed,
        workers=arguments.workers,
        pin_memory=device.type == "cuda",
    )
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    course: dict[str, list[float]] = {}
    step = 0
    while step < arguments.steps:
        sampler.set_epoch(step // len(loader))
        for batch in loader:
            if step == arguments.steps:
                break
            factor = learning_rate_factor(step, arguments.steps, settings["warmup"], "cosine")
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            batch = batch.to(device, non_blocking=True)
            if not settings["padding"]:  # the regions to ignore do not fit its smaller maps
                none = {key: getattr(batch, key)[:0] for key in ("ignore", "ignore_labels", "ignore_batch_index")}
                batch = replace(batch, **none)
            count = torch.tensor(max(1.0, float(len(batch.labels))), device=device)
            terms = objective(LossTask(batch, generator, count))
            torch.stack(list(terms.values())).sum().backward()
            norm = nn.utils.clip_grad_norm_(objective.parameters(), settings["clip"] or math.inf)
            numbers = torch.stack([*(value.detach() for value in terms.values()), norm]).tolist()
            values = dict(zip([*terms, "norm"], numbers, strict=True))
            if not all(map(math.isfinite, values.values())):
                bad = [key for key, value in values.items() if not math.isfinite(value)]
                return {"broke_at": step, "broken": bad, "course": course}
            optimizer.step()
            optimizer.zero_grad()
            if step % EVERY == 0:
                for key, value in {"step": step, **values}.items():
                    course.setdefault(key, []).append(float(f"{value:.4g}"))
            step += 1
    return {"broke_at": None, "course": course}


def plot(out: Path, path: Path) -> None:
    """Heatmap and box loss of the first seed; in one panel the cases that reach less than 0.9 of `shipped`'s AP.

    The mask loss is left out, which those that learn boxes alone do not have.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {row["name"]: row for row in rows(out) if row["seed"] == 0 and not row["name"].startswith("old-but")}
    curves = {}
    for name, row in found.items():
        total = [a + b for a, b in zip(row["course"]["heatmap"], row["course"]["box"], strict=True)]
        curves[name] = [median(total[max(0, i - 4) : i + 5]) for i in range(len(total))]
    ends = {name: median(curve[-10:]) for name, curve in curves.items()}
    best = found["shipped"]
    share = {
        name: row[key] / best[key]
        for name, row in found.items()
        for key in ("box_ap" if row.get("mask_ap") is None else "mask_ap",)
        if row["broke_at"] is None
    }
    worse = [name for name in curves if share.get(name, 0.0) < 0.9]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axes, title, names in (
        (panels[0], "AP below 0.9 of shipped", worse),
        (panels[1], "AP of 0.9 or more", [name for name in curves if name not in worse]),
    ):
        for name in sorted({*names, "shipped"}, key=lambda name: -ends[name]):
            steps, mine = found[name]["course"]["step"], name == "shipped"
            style = {"color": "black", "linewidth": 2.5} if mine else {"linewidth": 1.3}
            (line,) = axes.plot(steps, curves[name], label=name, **style)
            if found[name]["broke_at"] is not None:
                axes.plot(steps[-1], curves[name][-1], "x", color=line.get_color(), markersize=10)
        axes.set(title=title, xlabel="step", yscale="log")
        axes.legend(fontsize=8)
    panels[0].set_ylabel("heatmap and box loss (median over 90 steps)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--offset-rate", type=float, default=0.1, help="of all runs whose name does not say another")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads of each run")
    parser.add_argument("--init-from", default="", help="checkpoint with the backbone's weights, for ImageNet's")
    parser.add_argument("--only", choices=list(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run that would end after that time")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()
    jobs = [(n, seed) for seed in range(arguments.seeds) for n in arguments.only if not (seed and "old-but" in n)]
    whole = run_all(
        partial(run, arguments),
        [] if arguments.table else jobs,
        arguments.out,
        {name: getattr(arguments, name) for name in ("steps", "size", "offset_rate")},
        parallel=arguments.parallel,
        threads=arguments.threads,
        minutes=arguments.minutes,
    )
    print(convergence(arguments.out))
    if arguments.plot:
        plot(arguments.out, arguments.plot)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
