"""A run that is killed, or whose disk is full, loses at most what it has learned since the last save."""

from __future__ import annotations

import errno
import json
import logging
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

import torch
from shapes_data import shapes_folder

from centermask.training import loop
from centermask.training.checkpoint import load_checkpoint, save_checkpoint
from centermask.training.loop import Trainer
from centermask.training.settings import TrainConfig

STEPS = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def settings(folder, tmp_path):
    """Every step is saved."""
    return TrainConfig(
        data=(str(folder),), model="test_efficientnet-conv-none", out=str(tmp_path / "run"), epochs=STEPS // 3, size=64,
        batch_size=2, pretrained=False, val_split="", box_samples=2, workers=0, accelerator="cpu", save_minutes=1e-9,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_killed_at_any_moment(settings, tmp_path):
    """At each stage of writing a file, and at random; in the end the run has taken the course of one left alone."""
    (tmp_path / "settings.json").write_text(json.dumps(asdict(settings)))
    script = Path(__file__).parent / "killed_training.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "settings.json")], capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    log = Path(settings.out + ".log")
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    report = json.loads(done.stdout)
    assert report["ended"], log.read_text()
    by_stage = {row["stage"]: row for row in report["seen"]}
    assert all(row["killed"] for row in report["seen"] if row["stage"] != "none")
    steps = [row["step"] for row in report["seen"]]
    assert steps == sorted(steps)
    # Two or three saves an attempt; only the one that was renamed last counts, and those before it.
    assert steps[:5] == [1, 3, 4, 6, 8]
    assert [by_stage[s]["unfinished"] for s in ("opened", "half written", "written", "synced", "renamed")] == [
        1
    ] * 4 + [0]
    Trainer(replace(settings, out=str(tmp_path / "alone"))).fit()
    one, other = (load_checkpoint(Path(out) / "last.pt") for out in (settings.out, tmp_path / "alone"))
    assert one.training["step"] == other.training["step"] == STEPS
    assert all(torch.equal(one.training["weights"][k], v) for k, v in other.training["weights"].items())
    assert not [path for path in Path(settings.out).iterdir() if path.name.startswith(".")]


def test_a_disk_that_fills_up_does_not_end_the_run(settings, caplog):
    """The kernel allows files of 64 KiB: no checkpoint fits. Those of before stay, and the run goes on."""
    settings = replace(settings, epochs=2)
    trainer = Trainer(settings)
    trainer.save()
    file = trainer.out / "last.pt"
    before = file.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []
    original = trainer.train_step

    def step(*batches):
        seen.append(file.read_bytes() == before)
        if trainer.step == 4:  # somebody has made room
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        return original(*batches)

    trainer.train_step = step
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    try:
        with caplog.at_level(logging.ERROR):
            trainer.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert seen == [True] * 5 + [False]
    assert caplog.text.count("the last.pt of before stays, the run goes on") == 4
    assert load_checkpoint(file).training["step"] == 6
    assert {path.name for path in trainer.out.iterdir()} == {"last.pt", "final.pt", "best.pt"}


def test_the_end_of_a_run_is_not_lost_in_silence(settings, monkeypatch):
    """What cannot be written at the very end is an error: there is nothing to go on to."""
    trainer = Trainer(replace(settings, epochs=1))
    written = []

    def full(path, checkpoint):
        if checkpoint.training.get("step") == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert written == ["last.pt"] * 2
    assert load_checkpoint(trainer.out / "last.pt").training["step"] == 2


def test_a_best_model_that_cannot_be_written_is_not_the_best(settings, monkeypatch, caplog):
    figures = iter([0.2, 0.5, 0.4])
    trainer = Trainer(
        replace(settings, epochs=3, eval_every=1, val_split="train"), lambda *_: {"box_ap": next(figures)}
    )

    def full(path, checkpoint):
        if path.name == "best.pt" and checkpoint.info["ap"] == {"box_ap": 0.5}:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    with caplog.at_level(logging.ERROR):
        trainer.fit()
    assert "No space left" in caplog.text
    assert load_checkpoint(trainer.out / "best.pt").info["ap"] == {"box_ap": 0.4}
    assert (trainer.best.value, trainer.best.epoch) == (0.4, 3)


def test_logs_that_cannot_be_written_do_not_end_the_run(settings, monkeypatch, caplog):
    trainer = Trainer(replace(settings, epochs=4, save_minutes=100.0))

    def full(*_arguments, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.fabric, "log_dict", full)
    trainer.fit()
    assert trainer.step == 12
    assert "cannot write the logs" in caplog.text
