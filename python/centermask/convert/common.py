"""What the families have in common: reading a file safely, telling ResNets apart, and renaming without a remainder."""

from __future__ import annotations

import importlib
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from centermask.config import ModelConfig
from centermask.nn.model import CenterMask
from centermask.training.checkpoint import FORMAT

Tensors = Mapping[str, Tensor]


class ConvertError(ValueError):
    """A file cannot be converted. The message says what it is and what to do."""


@dataclass(frozen=True)
class Rule:
    """How keys of the source are called here.

    Attributes:
        pattern: Regular expression that must match a whole key of the source.
        name: Our key, with `\\1` for groups; None for what is known to be of no use.
    """

    pattern: str
    name: str | None


@dataclass(frozen=True)
class Plan:
    """What a family makes of a file.

    Attributes:
        config: The model that takes the weights.
        rules: Names; the first that matches a key counts.
        weights: The source's, in case the family had to change values; keys are the source's own.
        notes: What the user should know.
    """

    config: ModelConfig
    rules: Sequence[Rule]
    weights: Tensors
    notes: tuple[str, ...] = ()


def read_source(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a PyTorch file, without running any code that it may contain.

    They are looked for under the keys `state_dict` and `model`, or at the top; a prefix `module.` goes.

    Raises:
        FileNotFoundError: There is no such file.
        ConvertError: It is empty, truncated, no file of PyTorch, wants to run code, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ConvertError(f"{path}: the file is empty (0 bytes)")
    try:
        # Training scripts leave NumPy numbers beside the weights (a loss, a seed): data, no code.
        with torch.serialization.safe_globals(_numpy_types()):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's readers let all kinds escape, by the place where the bytes are wrong
        raise ConvertError(f"{path}: {_why_unreadable(error)}") from error
    return _find_weights(path, values)


def _numpy_types() -> list[Any]:
    # NumPy 2 moved this module; files of both times name either.
    module = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    moved = [
        (getattr(module, name), f"{place}.{name}")
        for name in ("scalar", "_reconstruct")
        for place in ("numpy.core.multiarray", "numpy._core.multiarray")
    ]
    return [*moved, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"Unsupported (?:class|global)[^A-Za-z]*([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"refused: beside weights it holds Python objects ({wanted[1]}), and reading those can run any code. If "
            "you trust where it comes from, make a file of the weights alone, where that project is installed: "
            "torch.save({'state_dict': torch.load(FILE, map_location='cpu', weights_only=False)['state_dict']}, NEW)"
        )
    # What torch says of a pickle advises to run whatever the file holds; nobody is to follow that.
    reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({next(iter(text.splitlines()), '')[:160]})"
    return f"truncated, damaged, or not a file of PyTorch{reason}"


def _find_weights(path: Path, values: Any) -> dict[str, Tensor]:
    if isinstance(values, dict) and values.get("format") == FORMAT:
        raise ConvertError(f"{path}: already a centermask checkpoint; `centermask export` and `eval` take it as it is")
    places = (values.get("state_dict"), values.get("model"), values) if isinstance(values, dict) else ()
    for candidate in places:
        if isinstance(candidate, dict) and candidate:
            arrays = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in candidate.items()}
            if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in arrays.items()):
                return {str(k).removeprefix("module."): v for k, v in arrays.items()}
    kind = f"a dictionary with {_some(map(str, values))}" if isinstance(values, dict) else type(values).__name__
    raise ConvertError(f"{path}: holds no weights under `state_dict`, `model` or at the top; it is {kind}")


def apply_plan(plan: Plan) -> dict[str, Tensor]:
    """Our weights, by our names, all of them.

    Raises:
        ConvertError: A key of the source is neither used nor known to be of no use, a weight of ours stays without a
            value, or shapes differ; all of them are listed.
    """
    with torch.device("meta"):
        wanted = CenterMask(plan.config).state_dict()
    found: dict[str, Tensor] = {}
    unknown = []
    for key, value in plan.weights.items():
        matches = ((rule, re.fullmatch(rule.pattern, key)) for rule in plan.rules)
        rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
        if rule is not None and rule.name is None:
            continue
        name = match.expand(rule.name) if rule is not None and match is not None and rule.name is not None else key
        if rule is None or name not in wanted or name in found:
            unknown.append(key)
        else:
            found[name] = value
    for name, value in wanted.items():
        if name in found:
            continue
        # PyTorch before 0.4.1 did not count batches. mmdetection's deformable convolutions have no bias.
        if name.endswith(".num_batches_tracked") or re.fullmatch(r"neck\..*\.conv\.bias", name):
            found[name] = torch.zeros(value.shape, dtype=value.dtype)
    missing = [name for name in wanted if name not in found]
    wrong = [
        f"{name}: {list(wanted[name].shape)} wanted, got {list(value.shape)}"
        for name, value in found.items()
        if value.shape != wanted[name].shape
    ]
    if unknown or missing or wrong:
        raise ConvertError(
            f"the file does not fit {plan.config.name}.\n"
            f"in the file, but not known ({len(unknown)}): {_some(unknown)}\n"
            f"in the model, but not in the file ({len(missing)}): {_some(missing)}\n"
            f"of another shape ({len(wrong)}): {_some(wrong)}"
        )
    bad = [name for name, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ConvertError(f"the file has weights that are not finite: {_some(bad)}")
    return {name: found[name].to(wanted[name].dtype).contiguous().clone() for name in wanted}


def _some(names: Any, most: int = 12) -> str:
    names = list(names)
    more = f", ... and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


# ---- what several families share ----

_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


def resnet_depth(weights: Tensors, layer: str) -> int:
    """18, 34, 50, 101 or 152, by the blocks that are there.

    Args:
        weights: Of the whole model.
        layer: What the keys of stage i (1..4) begin with, with `{}` for i, such as `backbone.layer{}.`.
    """
    counts = []
    for stage in range(1, 5):
        start = layer.format(stage)
        counts.append(len({key[len(start) :].partition(".")[0] for key in weights if key.startswith(start)}))
    bottleneck = f"{layer.format(1)}0.conv3.weight" in weights
    depth = _DEPTHS.get((bottleneck, tuple(counts)))
    if depth is None:
        raise ConvertError(f"no ResNet that is known here: {counts} blocks{' of three convolutions' * bottleneck}")
    return depth


def out_channels(weights: Tensors, key: str) -> int:
    """First dimension of a weight that the family needs.

    Raises:
        ConvertError: It is not there.
    """
    if key not in weights:
        raise ConvertError(f"{key} is missing; the file has {_some(weights)}")
    return int(weights[key].shape[0])
