"""Two processes, or one that adds up the gradients of parts of its batch, learn what one process learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

import torch
from shapes_data import shapes_folder, tiny
from torch import nn

from centermask.training.checkpoint import load_checkpoint
from centermask.training.loop import Trainer
from centermask.training.processes import prepare_batch_norm
from centermask.training.settings import TrainConfig

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight pictures of which most show nothing, so that shares of a batch differ, and some have no object at all."""
    root = shapes_folder(tmp_path_factory.mktemp("shapes"), pictures=8, splits=("train", "val"))
    for split in ("train", "val"):
        document = json.loads((root / f"{split}.json").read_text())
        document["annotations"] = [row for row in document["annotations"] if row["image_id"] in (2, 5, 6)]
        (root / f"{split}.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def settings(folder, tmp_path_factory):
    """Two steps an epoch; nothing is drawn at random in the losses, which each process would draw for itself."""
    return TrainConfig(
        data=(str(folder),), model="test_efficientnet-dcn-dynamic", out=str(tmp_path_factory.mktemp("runs") / "one"),
        epochs=3, size=64, batch_size=4, pretrained=False, val_split="", warmup_steps=2, box_samples=1,
        mask_samples=1, mask_jitter=0.0, aux_weight=1.0, batch_norm="frozen", workers=0, accelerator="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As each of torchrun's processes has, and quicker for a network this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def beside(settings, name, **changes):
    return replace(settings, out=str(Path(settings.out).parent / name), **changes)


class Recorded(Trainer):
    def __init__(self, config, evaluate=None):
        self.terms = []
        super().__init__(config, evaluate)

    def train_step(self, *batches):
        self.terms.append(super().train_step(*batches))
        return self.terms[-1]


@pytest.fixture(scope="module")
def alone(settings):
    """The terms of each step of one process on whole batches."""
    trainer = Recorded(settings)
    trainer.fit()
    return trainer.terms


@pytest.fixture(scope="module")
def together(settings):
    """All runs of two processes, in one start of them; a function from name to what both recorded."""
    ended = beside(settings, "ended", batch_size=8, accumulate=2, epochs=6)
    plans = [
        {"settings": asdict(beside(settings, "shared"))},
        {"settings": asdict(ended), "interrupt": [1, 3]},
        {"settings": asdict(replace(ended, resume=True))},
        {"settings": asdict(beside(settings, "judged", val_split="val", eval_every=1, epochs=2, batch_norm="own"))},
        {"settings": asdict(beside(settings, "broken")), "break": [1, 1]},
    ]
    root = Path(settings.out).parent
    (root / "plans.json").write_text(json.dumps(plans))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(HERE / "one_of_many.py"), str(root / "plans.json")),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return lambda name, kind="terms": [json.loads((root / name / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]


def assert_same_course(one, other):
    assert len(one) == len(other) == 6
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a.keys() == b.keys()
        # Sums in another order: 1e-7 each, magnified by Adam, which divides tiny gradients by their own size, to 1e-4
        # in six steps. A share normalised by its own count is off by tens of percent in the first.
        assert a == pytest.approx(b, rel=1e-5 if step == 0 else 2e-3), step


def test_two_processes_learn_what_one_learns(settings, alone, together):
    first, second = together("shared")
    assert first["world"] == 2
    assert first["terms"] == second["terms"]
    assert any(0 in (a[0], b[0]) and a != b for a, b in zip(first["objects"], second["objects"], strict=True))
    assert_same_course(first["terms"], alone)
    mine, theirs = (load_checkpoint(Path(beside(settings, n).out) / "last.pt").model for n in ("one", "shared"))
    whole = sum(float((mine[k].double() ** 2).sum()) for k in mine if k.endswith("weight"))
    apart = sum(float(((mine[k] - theirs[k]).double() ** 2).sum()) for k in mine if k.endswith("weight"))
    assert apart < 1e-5 * whole


@pytest.mark.parametrize("mask_head", ["dynamic", "shape"])
def test_a_batch_in_parts_teaches_what_the_whole_teaches(settings, tmp_path, mask_head):
    settings = replace(settings, mask_head=mask_head)
    whole = Recorded(replace(settings, out=str(tmp_path / "whole")))
    whole.fit()
    parts = Recorded(replace(settings, out=str(tmp_path / "parts"), accumulate=2))
    assert parts.steps_per_epoch == whole.steps_per_epoch == 2
    parts.fit()
    assert_same_course(parts.terms, whole.terms)


def test_two_processes_with_parts_end_together_and_go_on(settings, together):
    """Eight pictures a step in two parts of two processes, of which one is told to end."""
    whole = Recorded(beside(settings, "eight", batch_size=8, epochs=6))
    whole.fit()
    first, second = together("ended")
    assert [record["error"] for record in (first, second)] == ["KeyboardInterrupt: "] * 2
    assert len(first["terms"]) == len(second["terms"]) == 4
    rest, _ = together("ended", "terms-resumed")
    assert_same_course(first["terms"] + rest["terms"], whole.terms)


def test_one_process_judges_and_writes(settings, together):
    together("judged")
    out = Path(settings.out).parent / "judged"
    assert (out / "judged").read_text() == "0\n0\n"
    assert len(list((out / "logs").rglob("events*"))) == 1
    files = {path.name for path in out.iterdir()}
    assert files == {"best.pt", "last.pt", "final.pt", "logs", "judged", "terms-0.json", "terms-1.json"}


def test_all_processes_tell_what_broke_in_one(together):
    first, second = together("broken")
    assert first["error"] == second["error"]
    assert "FloatingPointError: process 0: training broke at step 1: loss terms not finite: none" in first["error"]
    told = "process 1: training broke at step 1: loss terms not finite: ['heatmap']; first layer with a bad output: "
    assert told + "heatmap.out; " in first["error"]
    assert len(first["terms"]) == len(second["terms"]) == 1


def test_shares_must_be_even(settings):
    with pytest.raises(ValueError, match="batch_size 4 does not divide into 1 processes with 3 parts each"):
        Trainer(beside(settings, "uneven", accumulate=3))


def test_no_other_precision_than_the_asked_one(settings):
    with pytest.raises(ValueError, match="precision fp16 needs a GPU"):
        Trainer(beside(settings, "half", precision="fp16"))


def test_batch_norms_keep_their_names_and_frozen_ones_their_statistics(settings, folder):
    model = tiny("test_efficientnet-dcn-dynamic")
    before = list(model.state_dict())
    assert prepare_batch_norm(model, "own", torch.device("cpu")) == []
    with pytest.raises(ValueError, match="sync needs GPUs"):
        prepare_batch_norm(model, "sync", torch.device("cpu"))
    prepare_batch_norm(model, "sync", torch.device("cuda"))  # needs none to be made
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    assert list(model.state_dict()) == before
    model.eval()(torch.zeros(1, 3, 64, 64))  # evaluated on a CPU

    trainer = Trainer(beside(settings, "frozen", epochs=1))
    statistics = {k: v.clone() for k, v in trainer.model.state_dict().items() if "running" in k}
    assert statistics
    trainer.fit()
    after = trainer.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in statistics.items())
