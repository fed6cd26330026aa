"""Can every neck and mask head learn 32 pictures by heart? A model that cannot has a bug in its targets or losses.

    python benchmarks/overfit.py DATA [--out DIR] [--pictures 32] [--epochs 400] [--size 448] [--only conv-shape]

Trains {conv, dcn} x {dynamic, shape} on the first pictures of DATA/train.json, without random crops, evaluates on the
same pictures, and writes OUT/overfit.json and a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from study import evaluate_on_cpu

from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig

VARIANTS = ("conv-dynamic", "dcn-dynamic", "conv-shape", "dcn-shape")


def make_subset(data: Path, out: Path, pictures: int) -> Path:
    """A folder whose train.json and val.json both hold the first annotated pictures of DATA/train.json."""
    document = json.loads((data / "train.json").read_text())
    used = {row["image_id"] for row in document["annotations"]}
    images = [row for row in document["images"] if row["id"] in used][:pictures]
    kept = {row["id"] for row in images}
    document["images"] = images
    document["annotations"] = [row for row in document["annotations"] if row["image_id"] in kept]
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (out / f"{split}.json").write_text(json.dumps(document))
    if not (out / "images").exists():
        (out / "images").symlink_to((data / "images").resolve(), target_is_directory=True)
    return out


def run(variant: str, data: Path, out: Path, epochs: int, size: int, init_from: str) -> dict[str, Any]:
    """Trains and evaluates one variant, from scratch each time."""
    shutil.rmtree(out / variant, ignore_errors=True)
    config = TrainConfig(
        data=(str(data),),
        model=f"lite0-{variant}",
        out=str(out / variant),
        epochs=epochs,
        eval_every=epochs,
        size=size,
        batch_size=8,
        learning_rate=2e-3,  # at batch 16; 1e-3 here
        weight_decay=0.0,
        warmup_steps=40,
        ema=0.98,  # a short run: a longer memory would still hold the start
        freeze_stages=2,
        scale=(1.0, 1.0),
        mosaic=0.0,
        workers=0,
        mask_jitter=0.03,
        aux_weight=1.0,
        init_from=init_from,
        pretrained=not init_from,
    )
    start = time.monotonic()
    trainer = Trainer(config, evaluate_on_cpu)
    result = trainer.fit()
    keys = ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "mask_ap75")
    return {
        "variant": variant,
        **{key: result[key] for key in keys},
        "steps": trainer.step,
        "device": str(trainer.fabric.device),
        "minutes": (time.monotonic() - start) / 60,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"))
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--size", type=int, default=448)
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=VARIANTS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--init-from", default="", help="checkpoint to start from in place of ImageNet weights")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    subset = make_subset(arguments.data, arguments.out / "data", arguments.pictures)
    path = arguments.out / "overfit.json"
    for variant in arguments.only:
        row = run(variant, subset, arguments.out, arguments.epochs, arguments.size, arguments.init_from)
        rows = [r for r in (json.loads(path.read_text()) if path.exists() else []) if r["variant"] != variant]
        path.write_text(json.dumps([*rows, row], indent=2))
    rows = json.loads(path.read_text())
    print("| neck-head | mask AP | mask AP50 | mask AP75 | box AP | steps | minutes |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda r: VARIANTS.index(r["variant"])):
        print(
            f"| {row['variant']} | {row['mask_ap']:.3f} | {row['mask_ap50']:.3f} | {row['mask_ap75']:.3f} "
            f"| {row['box_ap']:.3f} | {row['steps']} | {row['minutes']:.1f} |"
        )
    return 0 if all(row["mask_ap"] >= 0.80 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
