"""What each weight learns with and when, and how the optimizer's state finds its weights again when a run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from centermask.nn.model import CenterMask
from centermask.training.settings import TrainConfig

logger = logging.getLogger(__name__)

ROLES = ("offsets", "backbone", "rest")
"""What the learning rate depends on. The order is that of the groups."""


def learning_rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the base learning rate is multiplied with at a step: linear warm-up, then `cosine` to 1 % or `step`."""
    warm = min(1.0, (step + 1) / max(warmup, 1))
    done = step / max(total, 1)
    if schedule == "cosine":
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
    return warm * (0.1 ** ((done >= 2 / 3) + (done >= 8 / 9)))


def freeze_backbone(model: CenterMask, stages: int) -> list[nn.Module]:
    """Stops the gradients of the stem and of the backbone's first `stages` stages.

    Returns:
        The frozen modules; the loop keeps their norms in eval mode.
    """
    frozen: list[nn.Module] = []
    if stages <= 0:
        return frozen
    seen = 0
    for name, child in model.backbone.body.named_children():
        # A stage is layer1 ..., stages_0 ...; EfficientNets keep theirs in one module called blocks.
        for part in child.children() if name == "blocks" else [child]:
            seen += name == "blocks" or name.startswith(("layer", "stage"))
            if seen <= stages:
                frozen.append(part.requires_grad_(False))
    if seen < stages:
        raise ValueError(f"train: cannot freeze {stages} stages of {model.config.backbone}, which shows {seen}")
    return frozen


def role_of(name: str) -> str:
    """The role of a parameter of `Objective`, by its name."""
    if ".conv_offset." in name:
        return "offsets"
    return "backbone" if name.startswith("model.backbone.") else "rest"


def parameter_groups(objective: nn.Module, config: TrainConfig, rate: float) -> list[dict[str, Any]]:
    """Weights with decay; norms and biases without; each split by role, so that no setting changes the groups.

    Each group holds the `names` of its parameters, by which `resumed_state` finds them.
    """
    # Adam moves each of the offsets' thousands of weights by the whole rate from the first step on, however small the
    # gradient is: at the full rate the samples would be pixels away before the neck has learned anything.
    shares = {"offsets": config.offset_rate, "backbone": config.backbone_rate, "rest": 1.0}
    groups: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            key = (ROLES.index(role_of(name)), parameter.ndim > 1)
            groups.setdefault(key, []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "lr": rate * shares[ROLES[role]],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (role, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def names_by_rate(objective: nn.Module, settings: Mapping[str, Any]) -> list[str]:
    """The parameters in the order of a checkpoint that does not name them: grouped by the rates it was trained with."""
    groups: dict[tuple[float, bool], list[str]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            share = settings.get("backbone_rate", 1.0) if name.startswith("model.backbone.") else 1.0
            if role_of(name) == "offsets":
                share = settings.get("offset_rate", share)
            groups.setdefault((share, parameter.ndim > 1), []).append(name)
    return [name for key in sorted(groups) for name in groups[key]]


def resumed_state(
    fresh: Mapping[str, Any], saved: Mapping[str, Any], objective: nn.Module, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The state to go on with: the moments of the saved one, the weight decay and the like of the fresh one.

    Args:
        fresh: Of an optimizer made from `parameter_groups` with the settings that hold now.
        saved: As it stands in a checkpoint.
        objective: What is trained.
        settings: Those that the checkpoint was trained with.

    Raises:
        ValueError: The saved state names no parameters, and is of others than those that learn now.
    """
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    if all("names" in group for group in saved["param_groups"]):
        names = [name for group in saved["param_groups"] for name in group["names"]]
    else:
        names = names_by_rate(objective, settings)
    if len(names) != len(indices):
        raise ValueError(
            f"train: the optimizer's saved state is of {len(indices)} parameters in {len(saved['param_groups'])} "
            f"groups, {len(names)} learn now: go on with the settings of the checkpoint, or start from it (init_from)"
        )
    old = dict(zip(names, indices, strict=True))
    now = {
        name: index
        for group in fresh["param_groups"]
        for name, index in zip(group["names"], group["params"], strict=True)
    }
    if now.keys() - old.keys():
        logger.warning("%d parameters have no saved state: their moments begin anew", len(now.keys() - old.keys()))
    state = {index: saved["state"][old[name]] for name, index in now.items() if old.get(name) in saved["state"]}
    return {"state": state, "param_groups": fresh["param_groups"]}
