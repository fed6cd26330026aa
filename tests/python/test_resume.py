"""Going on with other settings than those of the start."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

import torch
from shapes_data import batch_of, shapes_folder

from centermask.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from centermask.training.loop import Trainer
from centermask.training.optimizer import names_by_rate
from centermask.training.settings import TrainConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("shapes"), pictures=8)


@pytest.fixture
def started(folder, tmp_path):
    """A run of one step: its settings, and the moments of each parameter by name."""
    settings = TrainConfig(
        data=(str(folder),), model="test_efficientnet-dcn-dynamic", out=str(tmp_path / "run"), epochs=2, size=64,
        batch_size=2, pretrained=False, val_split="", workers=0, accelerator="cpu",
    )  # fmt: skip
    trainer = Trainer(settings)
    trainer.train_step(batch_of(folder))
    trainer.save()
    return replace(settings, resume=True), moments(trainer)


def moments(trainer):
    names = {id(p): n for n, p in trainer.objective.named_parameters()}
    return {names[id(p)]: s["exp_avg"].clone() for p, s in trainer.optimizer.state.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_settings_of_the_optimizer_given_anew_hold(started):
    settings, before = started
    for changes in ({"weight_decay": 0.5}, {"offset_rate": 1.0}, {"offset_rate": 0.5, "backbone_rate": 1.0}):
        changed = replace(settings, **changes)
        trainer = Trainer(changed)
        assert same(moments(trainer), before)
        decays = {group["weight_decay"] for group in trainer.optimizer.param_groups}
        assert decays == {0.0, changed.weight_decay}
        shares = [rate / max(trainer.rates) for rate in trainer.rates[::2]]
        assert shares == pytest.approx([changed.offset_rate, changed.backbone_rate, 1.0])
        trainer.train_step(batch_of(settings.data[0]))


@pytest.mark.parametrize("had", [{}, {"offset_rate": 0.1}, {"offset_rate": 1.0}, {"backbone_rate": 0.05}])
def test_checkpoints_that_do_not_name_their_parameters(started, had):
    """The groups went by rate; a run from before `offset_rate` had its offsets among the rest."""
    settings, before = started
    path = f"{settings.out}/last.pt"
    found = load_checkpoint(path)
    trainer = Trainer(settings)
    rates = {"backbone_rate": 0.5, **had}
    names = names_by_rate(trainer.objective, rates)
    state = found.training["optimizer"]
    old = {n: i for g in state["param_groups"] for n, i in zip(g["names"], g["params"], strict=True)}
    state = {
        "state": {i: state["state"][old[n]] for i, n in enumerate(names)},
        "param_groups": [{"params": list(range(len(names))), "weight_decay": 0.0, "lr": 1.0}],
    }
    others = {k: v for k, v in found.training["settings"].items() if k not in ("offset_rate", "backbone_rate")}
    training = {**found.training, "optimizer": state, "settings": {**others, **rates}}
    save_checkpoint(path, Checkpoint(found.config, found.model, training, found.info))
    assert same(moments(Trainer(settings)), before)
    state["param_groups"][0]["params"].pop()
    save_checkpoint(path, Checkpoint(found.config, found.model, training, found.info))
    with pytest.raises(ValueError, match="the optimizer's saved state is of"):
        Trainer(settings)


def test_stages_that_thaw_begin_with_new_moments(started, caplog):
    settings, before = started
    frozen = Trainer(replace(settings, freeze_stages=1))
    kept = moments(frozen)
    assert same(kept, {k: before[k] for k in kept})
    assert len(kept) < len(before)
    frozen.save()
    with caplog.at_level(logging.WARNING):
        trainer = Trainer(settings)
    assert "parameters have no saved state" in caplog.text
    assert same(moments(trainer), kept)
    trainer.train_step(batch_of(settings.data[0]))


def test_other_pictures_are_said(started, caplog):
    """A run that is judged from now on holds out pictures that it has learned from."""
    settings, _ = started
    with caplog.at_level(logging.WARNING):
        Trainer(replace(settings, val_split="val"), lambda model, data: {"mask_ap": 0.0})
    assert "8 training pictures are now 7" in caplog.text
    assert "val_split was  and is now val" in caplog.text
