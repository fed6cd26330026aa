"""The moving average of a model's weights: what is evaluated and exported."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of parameters and buffers.

    The count of updates lives on the CPU: `torch.optim.swa_utils.AveragedModel` keeps it on the device, and reading it
    makes the CPU wait for the GPU at every step.

    Args:
        model: Its weights are copied.
        decay: Share that stays at each update, once many have been made: the (n+1)-th keeps
            min(decay, (1 + n) / (10 + n)), so that the random start does not linger for thousands of steps.

    Attributes:
        module: The model with the averaged weights; not to be trained.
        count: Updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the model's weights as they are now."""
        keep = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        averaged, current = _tensors(self.module), _tensors(model)
        floats = [i for i, tensor in enumerate(averaged) if tensor.is_floating_point()]
        counters = [i for i, tensor in enumerate(averaged) if not tensor.is_floating_point()]
        torch._foreach_mul_([averaged[i] for i in floats], keep)
        torch._foreach_add_([averaged[i] for i in floats], [current[i] for i in floats], alpha=1 - keep)
        if counters:
            torch._foreach_copy_([averaged[i] for i in counters], [current[i] for i in counters])
        self.count += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
