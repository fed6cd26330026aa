"""What each part of the recipe is worth: the same data, budget and seeds, one change at a time.

    python benchmarks/ablation.py DATA [--out DIR] [--seeds 2] [--parallel 1] [--epochs 40] [--only base ...]

Every run is `lite0` from ImageNet weights with the shipped recipe and the change that its name stands for. A run that
is in OUT already is not made again, so that the study can be stopped and goes on. Prints a Markdown table of means (and
the range over seeds) and leaves OUT/<change>-<seed>.json, with all figures, and the checkpoints beside it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from study import evaluate_on_cpu, rows, run_all

from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig

CHANGES: dict[str, dict[str, Any]] = {
    "base": {},  # dcn neck, dynamic masks, GIoU at 12 cells an object, EMA; no mosaic
    "conv": {"neck": "conv"},
    "shape": {"mask_head": "shape"},
    "conv-shape": {"neck": "conv", "mask_head": "shape"},
    "l1-centre": {"box_loss": "l1", "box_samples": 1, "mask_samples": 1},  # CenterNet's own way
    "l1": {"box_loss": "l1"},
    "giou-centre": {"box_samples": 1, "mask_samples": 1},
    "radius-iou0.3": {"radius": "iou0.3"},
    "no-ema": {"ema": 0.0},
    "aux": {"aux_weight": 1.0},
    "copy-paste": {"copy_paste": 0.5},
    "mosaic": {"mosaic": 0.5},
    "offset-rate-1": {"offset_rate": 1.0},
    "wide-scale": {"scale": (0.3, 1.5)},
}
COLUMNS = ("mask_ap", "mask_ap50", "mask_ap75", "mask_ap_medium", "mask_ap_large", "box_ap", "box_ap50")


def run(arguments: argparse.Namespace, name: str, seed: int, out: Path) -> dict[str, Any]:
    """One run."""
    settings: dict[str, Any] = {
        "model": "lite0-dcn-dynamic",
        "epochs": arguments.epochs,
        "eval_every": arguments.epochs,
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "learning_rate": 7e-4,
        "weight_decay": 0.05,
        "precision": arguments.precision,
        "scale": (0.4, 1.25),
        "top_k": arguments.top_k,
        "workers": arguments.workers,
        "mosaic": 0.0,
        "offset_rate": arguments.offset_rate,
        "pretrained": not arguments.init_from,
        "seed": seed,
        "save_minutes": 1e6,
        **CHANGES[name],
    }
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(data=(str(arguments.data),), out=str(out), init_from=arguments.init_from, **settings)
    trainer = Trainer(config, evaluate_on_cpu)
    try:
        figures = trainer.fit()
    except FloatingPointError as error:
        figures = {"mask_ap": 0.0, "box_ap": 0.0, "diverged": str(error)}
    (out / "last.pt").unlink(missing_ok=True)  # the state of a run that is over
    return {
        **{key: value for key, value in figures.items() if key != "per_class"},
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step,
        "device": str(trainer.fabric.device),
        "settings": settings,
    }


def table(out: Path) -> str:
    """Means over seeds, with the range where there are several."""
    lines = [
        "| change | runs | "
        + " | ".join(column.replace("_", " ") for column in COLUMNS)
        + " | mask/box | parameters |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    for name in CHANGES:
        mine = [row for row in rows(out) if row["name"] == name]
        if not mine:
            continue
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in mine if row.get(column) is not None]
            spread = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}" if values else "-")
        ratio = mean(row["mask_ap"] for row in mine) / max(mean(row["box_ap"] for row in mine), 1e-9)
        lines.append(
            f"| {name} | {len(mine)} | {' | '.join(cells)} | {ratio:.2f} | {mine[0]['parameters'] / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "32")
    parser.add_argument("--offset-rate", type=float, default=0.1, help="of all runs whose name does not say another")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads of each run")
    parser.add_argument("--init-from", default="", help="checkpoint to start from in place of ImageNet weights")
    parser.add_argument("--only", choices=list(CHANGES), nargs="+", default=list(CHANGES))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after that time")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()
    # Seeds outside: what was stopped early compares all changes on the first of them.
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.only]
    whole = run_all(
        partial(run, arguments),
        [] if arguments.table else jobs,
        arguments.out,
        {
            name: getattr(arguments, name)
            for name in ("epochs", "size", "batch_size", "top_k", "precision", "offset_rate")
        },
        parallel=arguments.parallel,
        threads=arguments.threads,
        minutes=arguments.minutes,
    )
    print(table(arguments.out))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
