"""When a run is judged the best so far, and when it has waited long enough for a better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        return (
            f"ends early, after epoch {epoch} of {epochs}: {self.stale} evaluations brought nothing better than "
            f"{self.key} {self.value:.4f} of epoch {self.epoch} (--resume --patience 0 goes on to the last epoch)"
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty before the first evaluation."""
        return {self.key: self.value, "epoch": self.epoch, "stale": self.stale} if self.epoch else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over `state`, also of checkpoints that did not count."""
        self.value, self.epoch = state.get(self.key, -1.0), state.get("epoch", 0)
        self.stale = state.get("stale", 0)
