"""What each part of the recipe is worth: the same data, budget and seeds, one change at a time.

    python benchmarks/ablation.py DATA --preset animals [--out DIR] [--seeds 2] [--parallel 1] [--only base conv ...]

Every run is `lite0` from ImageNet weights with the shipped recipe (the settings that `centermask train` takes by
itself) and the change that its name stands for; the preset says what the data need. A run that is in OUT already is not
made again, so that the study can be stopped and goes on. Prints a Markdown table of means (and half the range over
seeds) and leaves OUT/<change>-<seed>.json, with all figures, and OUT/<change>-<seed>/final.pt.

`no-ema` needs no runs: the weights of `base` are judged without the average too.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from figures import ablation
from study import evaluate_on_cpu, run_all

from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig

PRESETS: dict[str, dict[str, Any]] = {
    "animals": {"size": 320, "epochs": 30, "batch_size": 16},
    # Crowds of small objects: more instances, and crops that show pictures of 256 pixels enlarged.
    "nuclei": {"size": 448, "epochs": 30, "batch_size": 16, "top_k": 400, "mask_limit": 512},
}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},  # dcn neck, dynamic masks, GIoU at 12 cells an object, averaged weights, mosaic
    "conv": {"neck": "conv"},
    "shape": {"mask_head": "shape"},
    "no-mosaic": {"mosaic": 0.0},
    "copy-paste": {"copy_paste": 0.5},
    "aux": {"aux_weight": 1.0},
    "l1": {"box_loss": "l1"},
    "wide-scale": {"scale": (0.3, 1.4)},
    "l1-centre": {"box_loss": "l1", "box_samples": 1, "mask_samples": 1},  # CenterNet's own way
    "giou-centre": {"box_samples": 1, "mask_samples": 1},
    "conv-shape": {"neck": "conv", "mask_head": "shape"},
    "radius-iou0.3": {"radius": "iou0.3"},
    "offset-rate-1": {"offset_rate": 1.0},
}
USUAL = ("base", "conv", "shape", "no-mosaic", "copy-paste", "aux", "l1")
SHIPPED = ("base", "conv")
"""What `--shipped-seeds` runs on more seeds, to count divergences."""


def run(settings: dict[str, Any], data: Path, init_from: str, name: str, seed: int, out: Path) -> dict[str, Any]:
    """One run."""
    whole = {**settings, "seed": seed, **CHANGES[name]}
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(
        data=(str(data),), out=str(out), init_from=init_from, pretrained=not init_from, save_minutes=1e6, **whole
    )
    trainer = Trainer(config, evaluate_on_cpu)
    raw: dict[str, Any] = {}
    try:
        figures = trainer.fit()
        if name == "base" and trainer.val is not None:
            raw = {"raw": evaluate_on_cpu(trainer.model.eval(), trainer.val)}
    except FloatingPointError as error:
        figures = {"mask_ap": 0.0, "box_ap": 0.0, "diverged": str(error)}
    (out / "last.pt").unlink(missing_ok=True)  # the state of a run that is over
    return {
        **figures,
        **raw,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.step,
        "device": str(trainer.fabric.device),
        "change": CHANGES[name],
    }


def jobs_of(names: list[str], seeds: int, shipped_seeds: int) -> list[tuple[str, int]]:
    """Seeds outside: what is stopped early compares all changes on the first of them."""
    jobs = [(name, seed) for seed in range(seeds) for name in names]
    return jobs + [(name, seed) for seed in range(seeds, shipped_seeds) for name in names if name in SHIPPED]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", choices=list(PRESETS), default="animals")
    parser.add_argument("--out", type=Path, help="default: runs/ablation/PRESET")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shipped-seeds", type=int, default=3, help="of base and conv, where more than --seeds")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--epochs", type=int, help="in place of the preset's")
    parser.add_argument("--size", type=int, help="in place of the preset's")
    parser.add_argument("--batch-size", type=int, help="in place of the preset's")
    parser.add_argument("--warmup-steps", type=int, default=60, help="a twentieth of the steps, as `train` chooses")
    parser.add_argument("--precision", default="bf16" if torch.cuda.is_available() else "32")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads of each run")
    parser.add_argument("--init-from", default="", help="checkpoint to start from in place of ImageNet weights")
    parser.add_argument("--only", choices=list(CHANGES), nargs="+", default=list(USUAL))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run that would end after that time")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs/ablation") / arguments.preset
    given = {name: getattr(arguments, name) for name in ("epochs", "size", "batch_size")}
    settings = {
        **PRESETS[arguments.preset],
        **{name: value for name, value in given.items() if value is not None},
        "warmup_steps": arguments.warmup_steps,
        "precision": arguments.precision,
    }
    loading = {"workers": arguments.workers, "eval_every": settings["epochs"]}
    whole = run_all(
        partial(run, {**settings, **loading}, arguments.data, arguments.init_from),
        [] if arguments.table else jobs_of(arguments.only, arguments.seeds, arguments.shipped_seeds),
        out,
        settings,
        parallel=arguments.parallel,
        threads=arguments.threads,
        minutes=arguments.minutes,
    )
    print(ablation(out))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
