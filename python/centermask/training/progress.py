"""How far a run is: its best evaluation, whether it has waited long enough for a better one, the time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from centermask.wording import counted


@dataclass
class BestSoFar:
    """The best evaluation of a run, and how many came after it.

    Attributes:
        key: What is compared: `mask_ap`, or `box_ap` of a model without masks.
        value: The highest so far, 0..1; -1 before the first evaluation.
        epoch: After which it was reached, counted from 1; 0 before.
        stale: Evaluations since. Those in which nothing at all was found yet do not count: the run has only begun.
    """

    key: str
    value: float = -1.0
    epoch: int = 0
    stale: int = 0

    @property
    def name(self) -> str:
        """`mask AP` or `box AP`."""
        return self.key.removesuffix("_ap") + " AP"

    def judge(self, reached: float | None, epoch: int) -> bool:
        """Takes in an evaluation (None: the split has no object); whether it is the best so far."""
        reached = reached or 0.0
        if reached > self.value:
            self.value, self.epoch, self.stale = reached, epoch, 0
            return True
        if self.value > 0:
            self.stale += 1
        return False

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` evaluations brought nothing better; never with 0."""
        return 0 < patience <= self.stale

    def farewell(self, epoch: int, epochs: int) -> str:
        """What is said where a run ends early, after `epoch` of `epochs`."""
        waited = counted(self.stale, "evaluation")
        return (
            f"ends early, after epoch {epoch} of {epochs}: {waited} brought nothing better than "
            f"{self.name} {self.value:.4f} of epoch {self.epoch} (--resume --patience 0 goes on to the last epoch)"
        )

    def conclusion(self, out: Path) -> str:
        """What is said at the end of a run whose files are in `out`."""
        if not self.epoch:
            return f"the model is {out / 'best.pt'}; it was not evaluated"
        return f"the best model, with {self.name} {self.value:.4f} after epoch {self.epoch}, is {out / 'best.pt'}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty before the first evaluation."""
        return {self.key: self.value, "epoch": self.epoch, "stale": self.stale} if self.epoch else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over `state`, also of checkpoints that did not count."""
        self.value, self.epoch = state.get(self.key, -1.0), state.get("epoch", 0)
        self.stale = state.get("stale", 0)


class Clock:
    """Foretells how long a run still takes, from the steps since it was started.

    Args:
        step: The run's at this moment.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.started = monotonic()

    def left(self, step: int, total: int) -> str:
        """Such as `24 minutes left`, `step` steps of `total` done; empty where nothing was done or is to be done."""
        if not self.step < step < total:
            return ""
        return f"{in_words((monotonic() - self.started) / (step - self.step) * (total - step))} left"


def in_words(seconds: float) -> str:
    """A length of time to plan by, such as `24 minutes`."""
    hours, minutes = seconds / 3600, seconds / 60
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"


def figures_in_words(figures: Mapping[str, Any]) -> str:
    """The few that one follows a run by: `mask AP 0.4067, AP50 0.7428, box AP 0.3338, AP50 0.7483`.

    Args:
        figures: As `evaluate_coco` gives them; None where the split has no object.
    """
    parts = []
    for kind in ("mask", "box"):
        names = [(f"{kind}_ap", f"{kind} AP"), (f"{kind}_ap50", "AP50")]
        parts += [f"{name} {figures[key]:.4f}" for key, name in names if figures.get(key) is not None]
    return ", ".join(parts)


def bar_seconds() -> float:
    """How often a progress bar is drawn: where nobody watches, each drawing stays as a line in a file."""
    return 1.0 if sys.stderr.isatty() else 60.0
