"""One process of several trainings in turn, started by torchrun: python one_of_many.py PLANS.json.

A plan holds the settings of a run and what is to happen in it; OUT/terms-<rank>.json is what came of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig


class Scripted(Trainer):
    def __init__(self, plan):
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in plan["settings"].items()}
        config = TrainConfig(**values)
        super().__init__(config, self.judge if config.val_split else None)
        self.plan = plan
        self.record = {"terms": [], "objects": [], "error": "", "world": self.fabric.world_size}

    def judge(self, _model, _data):
        with (self.out / "judged").open("a") as file:
            file.write(f"{self.fabric.global_rank}\n")
        return {"mask_ap": 0.5}

    def train_step(self, *batches):
        here = [self.fabric.global_rank, self.step]
        if self.plan.get("interrupt") == here:
            self.interrupted = True
        if self.plan.get("break") == here:
            with torch.no_grad():
                self.model.heatmap.out.bias.fill_(torch.nan)
        self.record["objects"].append([len(batch.labels) for batch in batches])
        self.record["terms"].append(super().train_step(*batches))
        return self.record["terms"][-1]


def main(path: Path) -> None:
    for plan in json.loads(path.read_text()):
        trainer = Scripted(plan)
        trainer.out.mkdir(exist_ok=True)
        try:
            trainer.fit()
        except (FloatingPointError, KeyboardInterrupt) as error:
            trainer.record["error"] = f"{type(error).__name__}: {error}"
        name = f"terms{'-resumed' * trainer.config.resume}-{trainer.fabric.global_rank}.json"
        (trainer.out / name).write_text(json.dumps(trainer.record))
        trainer.fabric.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
