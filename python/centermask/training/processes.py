"""Several processes that train one model: how they are started, what they agree on, and what batch norms see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from centermask.training.settings import TrainConfig

PRECISIONS: Mapping[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

PATIENCE = timedelta(hours=4)
"""How long the others wait while the first process evaluates alone; torch's own 10 or 30 minutes can be too few."""


def make_fabric(config: TrainConfig) -> lightning.Fabric:
    """Lightning Fabric, launched: one process, `devices` of them, or those that `torchrun` has started.

    Raises:
        ValueError: The batch cannot be shared evenly, or the device does not have the precision.
    """
    devices, nodes = config.devices, 1
    # Without being told, Fabric would train one model in each of torchrun's processes.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    fabric = lightning.Fabric(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(timeout=PATIENCE) if devices * nodes > 1 else "auto",
        precision=PRECISIONS[config.precision],
        loggers=TensorBoardLogger(Path(config.out), name="logs", version=""),
    )
    fabric.launch()
    if config.precision == "fp16" and fabric.device.type == "cpu":  # Fabric would take bf16 and only warn
        raise ValueError("train: precision fp16 needs a GPU; on a CPU take bf16 or 32")
    share = fabric.world_size * config.accumulate
    if config.batch_size % share:
        raise ValueError(
            f"train: batch_size {config.batch_size} does not divide into {fabric.world_size} processes "
            f"with {config.accumulate} parts each"
        )
    return fabric


def on_this_machine() -> int:
    """How many processes of this run share this machine's memory; of those that torchrun or Fabric has started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(os.environ.get("LOCAL_WORLD_SIZE", torch.distributed.get_world_size()))
    return 1


def prepare_batch_norm(model: nn.Module, kind: str, device: torch.device) -> list[nn.Module]:
    """Makes batch norms take their statistics as the setting `batch_norm` says.

    Args:
        model: Changed in place under `sync`; the names of its weights stay.
        kind: `own`, `sync` or `frozen`.
        device: Where the model will learn.

    Returns:
        The modules that the loop must keep in eval mode.

    Raises:
        ValueError: `sync` on a CPU, where torch has no such thing.
    """
    if kind == "sync":
        if device.type != "cuda":
            raise ValueError("train: batch_norm sync needs GPUs; on a CPU take own or frozen")
        for name, module in list(model.named_children()):
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    if kind == "frozen":
        return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return []


def mean_of_all(fabric: lightning.Fabric, values: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    return torch.as_tensor(fabric.all_reduce(values, reduce_op="mean"))


def agreed(fabric: lightning.Fabric, values: Tensor, own: list[float]) -> list[float]:
    """The means over all processes of a vector on the device and of numbers of the CPU, all brought to the CPU."""
    if fabric.world_size == 1:  # without a way to the device and back
        return [*values.tolist(), *own]
    numbers: list[float] = mean_of_all(fabric, torch.cat([values, torch.tensor(own).to(values)])).tolist()
    return numbers


def told_by_all(text: str) -> str:
    """What each process has to say, joined; the same in all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return text
    texts = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(texts, text)
    return "\n".join(f"process {rank}: {text}" for rank, text in enumerate(texts))
