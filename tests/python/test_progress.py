"""Runs that end early because nothing improves any more."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("lightning")

from shapes_data import shapes_folder

from centermask.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from centermask.training.loop import Trainer
from centermask.training.progress import BestSoFar, Clock, figures_in_words, in_words
from centermask.training.settings import TrainConfig


def test_counting_starts_with_the_first_find_and_anew_with_each_best():
    best = BestSoFar("mask_ap")
    assert (best.exhausted(1), best.state()) == (False, {})
    history = [(0.0, 0), (None, 0), (0.2, 0), (0.1, 1), (0.2, 2), (None, 3), (0.21, 0), (0.0, 1)]
    for epoch, (reached, stale) in enumerate(history, start=1):
        better = best.judge(reached, epoch)
        assert (best.stale, better) == (stale, epoch in (1, 3, 7)), epoch
    assert (best.value, best.epoch) == (0.21, 7)
    assert [best.exhausted(patience) for patience in (0, 1, 2)] == [False, True, False]


def test_the_state_is_taken_over_also_where_nothing_was_counted():
    best, other = BestSoFar("box_ap"), BestSoFar("box_ap")
    best.judge(0.5, 3)
    best.judge(0.4, 6)
    other.load(best.state())
    assert other == best
    other.load({"box_ap": 0.3, "epoch": 2})
    assert other == BestSoFar("box_ap", 0.3, 2, 0)
    other.load({})
    assert other == BestSoFar("box_ap")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("shapes"), pictures=2, splits=("train", "val"))


@pytest.fixture
def settings(shapes, tmp_path):
    """One step an epoch."""
    return TrainConfig(
        data=(str(shapes),), model="test_efficientnet-conv-dynamic", out=str(tmp_path / "run"), epochs=9, size=64,
        batch_size=2, pretrained=False, workers=0, accelerator="cpu", eval_every=1, patience=2,
    )  # fmt: skip


class Judge:
    """In place of an evaluation: the next figure of a list, by the epoch."""

    def __init__(self, *figures: float) -> None:
        self.figures, self.calls = figures, 0

    def __call__(self, model, data):
        self.calls += 1
        return {"mask_ap": self.figures[self.calls - 1]}


FIGURES = (0.0, 0.0, 0.0, 0.4, 0.3, 0.5, 0.5, 0.1, 0.9)
"""Two evaluations after the sixth bring nothing better: the ninth is never made."""


def test_a_run_ends_where_nothing_improves_and_says_so(settings, caplog):
    judge = Judge(*FIGURES)
    with caplog.at_level(logging.INFO):
        result = Trainer(settings, judge).fit()
    assert judge.calls == 8
    assert result == {"mask_ap": 0.1}
    assert "ends early, after epoch 8 of 9: 2 evaluations brought nothing better than mask AP 0.5000 of epoch 6" in (
        caplog.text
    )
    best, final, last = (load_checkpoint(f"{settings.out}/{name}.pt") for name in ("best", "final", "last"))
    assert (best.info["step"], best.info["ap"]) == (6, {"mask_ap": 0.5})
    assert (final.info["step"], final.info["ap"]) == (8, {"mask_ap": 0.1})
    assert last.training["best"] == {"mask_ap": 0.5, "epoch": 6, "stale": 2}


def test_without_patience_and_where_it_suffices_a_run_goes_to_the_end(settings, caplog):
    for patience in (0, 3):
        judge = Judge(*FIGURES)
        with caplog.at_level(logging.INFO):
            Trainer(replace(settings, patience=patience, out=f"{settings.out}{patience}"), judge).fit()
        assert judge.calls == 9
    assert "ends early" not in caplog.text


def test_a_run_that_goes_on_remembers_how_long_it_has_waited(settings, caplog):
    """Stopped after the seventh epoch, one evaluation after the best."""

    class Stopping(Trainer):
        def save(self, *, must: bool = True) -> None:
            super().save(must=must)
            if self.step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stopping(settings, Judge(*FIGURES)).fit()
    judge = Judge(*FIGURES[7:])
    trainer = Trainer(replace(settings, resume=True), judge)
    assert trainer.best == BestSoFar("mask_ap", 0.5, 6, 1)
    trainer.fit()
    assert (judge.calls, trainer.step) == (1, 8)

    # Over is over: its files stay as they are, the message is repeated.
    figures = load_checkpoint(f"{settings.out}/final.pt").info
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert Trainer(replace(settings, resume=True), Judge()).fit() == {}
    assert "ends early, after epoch 8 of 9" in caplog.text
    assert load_checkpoint(f"{settings.out}/final.pt").info == figures

    # And it can be told to go on, which is no other course of the run.
    caplog.clear()
    judge = Judge(*FIGURES[8:])
    with caplog.at_level(logging.INFO):
        Trainer(replace(settings, resume=True, patience=0), judge).fit()
    assert judge.calls == 1
    assert "not as if never stopped" not in caplog.text
    assert load_checkpoint(f"{settings.out}/best.pt").info["ap"] == {"mask_ap": 0.9}


def test_an_interrupt_in_the_last_step_of_an_epoch_loses_no_evaluation(settings):
    class Interrupted(Trainer):
        def train_step(self, *batches):
            self.interrupted |= self.step == 3  # the fourth epoch's only step
            return super().train_step(*batches)

    judge = Judge(*FIGURES)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(settings, judge).fit()
    assert judge.calls == 4
    trainer = Trainer(replace(settings, resume=True), Judge(*FIGURES[4:]))
    assert (trainer.step, trainer.best) == (4, BestSoFar("mask_ap", 0.4, 4, 0))


def test_what_was_lost_after_an_early_end_is_written_again(settings, tmp_path):
    """A run killed between its last save and final.pt."""
    Trainer(settings, Judge(*FIGURES)).fit()
    (tmp_path / "run" / "final.pt").unlink()
    Trainer(replace(settings, resume=True), Judge()).fit()
    assert load_checkpoint(tmp_path / "run" / "final.pt").info["step"] == 8


def test_checkpoints_from_before_the_counting(settings):
    Trainer(replace(settings, epochs=4), Judge(*FIGURES)).fit()
    path = f"{settings.out}/last.pt"
    saved = load_checkpoint(path)
    training = {**saved.training, "best": {"mask_ap": 0.4, "epoch": 4}}
    save_checkpoint(path, Checkpoint(saved.config, saved.model, training, saved.info))
    assert Trainer(replace(settings, resume=True, epochs=4), Judge()).best == BestSoFar("mask_ap", 0.4, 4, 0)


def test_a_negative_patience_is_refused(settings):
    with pytest.raises(ValueError, match="patience must not be negative, got -1"):
        replace(settings, patience=-1)


def test_the_time_left_goes_by_the_steps_since_the_start(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("centermask.training.progress.monotonic", lambda: now[0])
    clock = Clock(100)
    assert clock.left(100, 400) == ""
    now[0] += 600.0
    assert clock.left(200, 400) == "20 minutes left"
    assert clock.left(400, 400) == ""
    assert [in_words(seconds) for seconds in (3, 89, 91, 7100, 7300)] == [
        "a minute or less", "a minute or less", "2 minutes", "118 minutes", "2.0 hours",
    ]  # fmt: skip


def test_figures_are_few_and_those_that_are_there():
    figures = {"mask_ap": 0.40671, "mask_ap50": 0.7, "mask_ap_small": 0.1, "box_ap": 0.25, "box_ap50": None}
    assert figures_in_words(figures) == "mask AP 0.4067, AP50 0.7000, box AP 0.2500"
    assert figures_in_words({}) == ""
