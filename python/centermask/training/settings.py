"""Every setting of a training run, in one frozen dataclass; the command line is made from its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

BYSTANDERS = frozenset(
    {"out", "resume", "init_from", "pretrained", "workers", "cache", "eval_every", "save_minutes", "patience"}
)
"""Settings that may differ when a run goes on: it takes the same course."""


def option(default: Any, text: str) -> Any:
    """A field with the sentence that `centermask train --help` shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `centermask train`; see each field's help."""

    data: tuple[str, ...] = option(
        (),
        "data sets (COCO: train.json, val.json, images/; COCO 2017, Roboflow, YOLO-seg); joined by class name",
    )
    model: str = option("lite0-dcn-dynamic", "<backbone>-<dcn|conv|deconv|dlaup>-<dynamic|shape|none>")
    neck: Literal["dcn", "conv", "deconv", "dlaup"] | None = option(None, "in place of the one in the model's name")
    mask_head: Literal["dynamic", "shape", "none"] | None = option(None, "in place of the one in the model's name")
    out: str = option("runs/train", "folder for checkpoints and logs")
    classes: tuple[str, ...] = option((), "class names to learn, in this order; default: all")
    epochs: int = option(60, "passes over the data")
    size: int = option(512, "side of the training crops in pixels, a multiple of 32; also the Predictor's longest side")
    resume: bool = option(False, "go on from OUT/last.pt, exactly as if never stopped")
    init_from: str = option("", "checkpoint whose weights to start from; a converted detector too")
    pretrained: bool = option(True, "start the backbone from ImageNet weights")
    val_split: str = option("val", "split to evaluate on; '' for none")

    batch_size: int = option(16, "pictures a step, over all processes")
    accumulate: int = option(1, "parts that each process computes its share of a step in, one after the other")
    batch_norm: Literal["own", "sync", "frozen"] = option(
        "own", "statistics of batch norms: each process's own, those of all (GPUs), or as they are at the start"
    )
    learning_rate: float = option(1e-3, "at batch size 16; scaled linearly with the batch")
    backbone_rate: float = option(0.5, "the backbone's share of the learning rate")
    offset_rate: float = option(0.1, "the share of the convolutions that predict where the dcn neck samples")
    schedule: Literal["cosine", "step"] = option("cosine", "cosine to 1 %, or a tenth at 2/3 and 8/9 of the steps")
    weight_decay: float = option(0.02, "AdamW's; not on norms and biases")
    warmup_steps: int = option(300, "steps of linear warm-up")
    clip: float = option(10.0, "largest gradient norm; 0 for no clipping")
    ema: float = option(0.998, "decay of the averaged weights that are evaluated and exported; 0 for none")
    precision: Literal["32", "bf16", "fp16"] = option("32", "32, bf16 or fp16 (automatic mixed precision)")
    freeze_stages: int = option(0, "backbone stages to keep as they are, counted from the input")
    compile: bool = option(False, "torch.compile the network")

    radius: Literal["cornernet", "iou0.3"] = option("cornernet", "rule for the heatmap's Gaussian radius")
    box_loss: Literal["giou", "l1"] = option("giou", "loss of the boxes")
    box_samples: int = option(12, "cells an object that learn its box; 1 is CenterNet's centre only")
    mask_samples: int = option(3, "cells an object that learn its mask")
    mask_limit: int = option(256, "most cells a step and process that learn a mask")
    mask_jitter: float = option(0.08, "noise on the boxes that the mask head learns with")
    heatmap_weight: float = option(1.0, "weight of the heatmap loss")
    box_weight: float = option(3.0, "weight of the box loss")
    mask_weight: float = option(3.0, "weight of the mask loss")
    aux_weight: float = option(
        0.0, "weight of an auxiliary loss: what covers each cell (CondInst; saliency of `shape`)"
    )
    one_class: bool = option(
        False, "in joined sets an object teaches that it is of none of the classes that its own set does not label"
    )
    top_k: int = option(100, "most instances in one picture that the model gives")

    scale: tuple[float, float] = option((0.6, 1.3), "range of the crop's side as a share of the picture's longer side")
    multi_scale: float = option(0.0, "the crops of a step are larger or smaller by up to this share; 0 for one size")
    aspect: float = option(1.0, "largest random change of the aspect ratio, as a factor; 1 for none")
    rotation: float = option(0.0, "largest random rotation in degrees; 0 for none")
    mosaic: float = option(0.5, "probability that a sample is made of four pictures")
    copy_paste: float = option(0.0, "probability that objects of another picture are pasted into a sample")
    data_weights: tuple[float, ...] = option((), "how often to show each data set's pictures; default: once an epoch")
    repeat_threshold: float = option(0.0, "repeat pictures of classes rarer than this share (LVIS); 0 for off")
    workers: int = option(2, "processes that load pictures")
    cache: bool = option(True, "keep decoded pictures in memory where they fit")
    seed: int = option(0, "of everything random")
    eval_every: int = option(5, "epochs between evaluations; the last epoch is always evaluated")
    patience: int = option(0, "evaluations without a better one after which the run ends early; 0 for never")
    save_minutes: float = option(10.0, "longest time between two saves of last.pt")
    accelerator: str = option("auto", "auto, cpu or cuda")
    devices: int = option(1, "processes on this machine; torchrun sets them by itself")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(TrainConfig).items():
            optional = type(None) in get_args(kind)
            choices = next((get_args(part) for part in (kind, *get_args(kind)) if get_origin(part) is Literal), None)
            value = getattr(self, name)
            if choices and value not in choices and not (optional and value is None):
                raise ValueError(f"train: {name} must be one of {choices}, got {value!r}")
        for name in (
            "epochs",
            "batch_size",
            "box_samples",
            "mask_samples",
            "mask_limit",
            "eval_every",
            "devices",
            "top_k",
            "accumulate",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"train: {name} must be at least 1, got {getattr(self, name)}")
        if self.size < 64 or self.size % 32:
            raise ValueError(f"train: size must be a multiple of 32 and at least 64, got {self.size}")
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise ValueError(f"train: data_weights needs one number for each of {len(self.data)} data sets")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"train: scale must be low,high with 0 < low <= high, got {self.scale}")
        for name in ("learning_rate", "save_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train: {name} must be positive, got {getattr(self, name)}")
        for name in (
            "clip",
            "warmup_steps",
            "freeze_stages",
            "mask_jitter",
            "weight_decay",
            "aux_weight",
            "rotation",
            "patience",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train: {name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.multi_scale < 1:
            raise ValueError(f"train: multi_scale must be at least 0 and below 1, got {self.multi_scale}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"train: ema must be at least 0 and below 1, got {self.ema}")

    def sizes(self) -> tuple[int, ...]:
        """Sides that the crops of a step may have: multiples of 32 within `multi_scale` around `size`."""
        reach = int(self.size * self.multi_scale) // 32
        return tuple(max(64, self.size + 32 * n) for n in range(-reach, reach + 1))

    def differences(self, saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The settings that change the course of a run: {name: (saved value, value now)}.

        Args:
            saved: Settings as they stand in a checkpoint; those that it does not name are left out.
        """
        result: dict[str, tuple[Any, Any]] = {}
        for name in (f.name for f in fields(self) if f.name not in BYSTANDERS):
            now = getattr(self, name)
            now = list(now) if isinstance(now, tuple) else now
            if name in saved and saved[name] != now:
                result[name] = (saved[name], now)
        return result
