"""A training that is killed again and again: python killed_training.py SETTINGS.json, then it prints what it saw.

Each attempt is a fork of this process, which has imported everything and computed nothing. One is killed at each stage
of writing a checkpoint, the others whenever chance wants it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from centermask.training import checkpoint as module
from centermask.training.checkpoint import load_checkpoint
from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig

STAGES = ("opened", "half written", "written", "synced", "renamed", "none")


def die(*_arguments, **_settings):
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(stage: str, countdown: int) -> None:
    """Has the process killed at a stage of the `countdown`-th checkpoint from now."""
    left = [countdown]
    save, fsync, rename = torch.save, os.fsync, os.replace

    def save_or_die(values, file):
        left[0] -= 1
        if left[0]:
            return save(values, file)
        if stage == "opened":
            die()
        if stage == "half written":
            file.write(b"PK" + bytes(100_000))
            file.flush()
            die()
        return save(values, file)

    def at(name, function):
        return lambda *a: die() if not left[0] and stage == name else function(*a)

    torch.save = save_or_die
    module.os.fsync = at("written", fsync)  # written, but not on the disk
    module.os.replace = at("synced", rename)
    if stage == "renamed":
        module.os.replace = lambda *a: (rename(*a), die()) if not left[0] else rename(*a)


def attempt(config: TrainConfig, stage: str, countdown: int) -> int:
    """Forks a process that trains; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(os.open(config.out + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        torch.set_num_threads(1)
        die_while_writing(stage, countdown)
        Trainer(replace(config, resume=(Path(config.out) / "last.pt").exists())).fit()
        code = 0
    finally:
        os._exit(code)


def main(path: Path) -> None:
    values = json.loads(path.read_text())
    config = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    chance = random.Random(5)
    seen = []
    plan = [(stage, 2 + number % 2) for number, stage in enumerate(STAGES[:-1])] + [("none", 0)] * 3
    for stage, countdown in plan:
        child = attempt(config, stage, countdown)
        if stage == "none":
            time.sleep(chance.uniform(0.3, 3.0))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        file = Path(config.out) / "last.pt"
        step = load_checkpoint(file).training["step"] if file.exists() else 0  # raises if it is not whole
        unfinished = len(list(file.parent.glob(".*part")))
        seen.append({"stage": stage, "killed": os.WIFSIGNALED(status), "step": step, "unfinished": unfinished})
    _, status = os.waitpid(attempt(config, "none", 0), 0)
    print(json.dumps({"seen": seen, "ended": status == 0}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
