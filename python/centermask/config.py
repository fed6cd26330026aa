"""Frozen descriptions of a model and of how its pictures are prepared. No registries, no import-time work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

Neck = Literal["dcn", "conv", "deconv", "dlaup"]
MaskHead = Literal["dynamic", "shape", "none"]
BoxCoding = Literal["linear", "exp"]
SizePolicy = Literal["fit", "fixed", "fixed_index", "keep"]

STRIDE = 4
"""Input pixels per cell of the heatmap and of the mask features."""

DYNAMIC_PARAMS = 169
"""Parameters of the dynamic mask network: 10x8 + 8x8 + 8x1 weights, then 8 + 8 + 1 biases."""

SHAPE_SIZE = 32
"""Side of the square shape map of the `shape` mask head."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How a picture becomes the network's input.

    Attributes:
        size: Longest side (`fit`) or both sides (`fixed`, `fixed_index`) of the input in pixels; unused by `keep`.
        policy: `fit` scales the longest side to `size` and pads to a multiple of 32; `fixed` scales into a
            `size` x `size` square; `fixed_index` does the same and reads the boxes as CenterNet does, which maps pixel
            indices; `keep` does not scale and pads to `(side | 31) + 1`. Padding is centred.
        color: Channel order that the network was trained with.
        mean: Per channel, in the order of `color`, in grey levels 0..255.
        std: Likewise.
    """

    size: int = 512
    policy: SizePolicy = "fit"
    color: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model again from its weights.

    Attributes:
        backbone: Short name (`lite0`, `resnet50`, ...) or any timm name with features at strides 4..32.
        neck: `dcn` or `conv`: the 3x3 convolution in front of each upsampling stage; `deconv`: none there; `dlaup`: the
            DLAUp and IDAUp of CenterNet's DLA models.
        mask_head: `dynamic` (CondInst), `shape` (CenterMask, arXiv 2004.04446) or `none` (boxes only).
        class_names: In the order of the heatmap's channels.
        category_ids: The data set's own id of each class.
        neck_channels: Channels of the three upsampling stages, stride 32 -> 16 -> 8 -> 4.
        lateral: Add 1x1-projected backbone features after each upsampling (not in the published CenterNet).
        head_channels: Hidden channels of every head.
        offset_head: Predict where in its cell a centre lies; without, it is taken for the cell's middle.
        mask_channels: Channels of the mask features (`dynamic`: 8; `shape`: 1, or one for each class).
        box_coding: How the size head is read: `linear` (in cells, CenterNet) or `exp` (8 cells x e^value).
        box_margin: Masks are clipped to the box grown by this fraction of its width and height on each side.
        max_overlap: Of two instances of a class whose boxes overlap more than this (IoU), the Predictor keeps the
            better one, unless told otherwise; 1 keeps both, as CenterNet does.
        top_k: Most instances in one picture.
        preprocess: How pictures are prepared.
    """

    backbone: str = "lite0"
    neck: Neck = "dcn"
    mask_head: MaskHead = "dynamic"
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    neck_channels: tuple[int, int, int] = (256, 128, 64)
    lateral: bool = False
    head_channels: int = 64
    offset_head: bool = True
    mask_channels: int = 8
    box_coding: BoxCoding = "linear"
    box_margin: float = 0.1
    max_overlap: float = 0.65
    top_k: int = 100
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)

    @property
    def name(self) -> str:
        """`<backbone>-<neck>-<mask head>`."""
        return f"{self.backbone}-{self.neck}-{self.mask_head}"

    @property
    def mask_params(self) -> int:
        """Length P of an instance's mask parameters; 0 for `none`."""
        return {"dynamic": DYNAMIC_PARAMS, "shape": SHAPE_SIZE * SHAPE_SIZE, "none": 0}[self.mask_head]

    @classmethod
    def from_name(cls, name: str, **changes: Any) -> ModelConfig:
        """The standard configuration of a `<backbone>-<neck>-<mask head>` name.

        Raises:
            ValueError: The name is not of that form.
        """
        parts = name.rsplit("-", 2)
        if len(parts) != 3 or parts[1] not in get_args(Neck) or parts[2] not in get_args(MaskHead):
            raise ValueError(
                f"model name must be <backbone>-<{'|'.join(get_args(Neck))}>-<{'|'.join(get_args(MaskHead))}>, "
                f"such as lite0-dcn-dynamic; got {name!r}"
            )
        backbone, neck, mask_head = parts
        small = backbone == "lite0"
        if neck in ("deconv", "dlaup"):  # as published
            lateral, channels = False, {"deconv": (256, 256, 256), "dlaup": (256, 128, 64)}[neck]
        else:
            lateral, channels = small, (128, 96, 64) if small else (256, 128, 64)
        config = cls(
            backbone=backbone,
            neck=neck,  # type: ignore[arg-type]
            mask_head=mask_head,  # type: ignore[arg-type]
            neck_channels=channels,
            lateral=lateral,
            mask_channels={"dynamic": 8, "shape": 1, "none": 0}[mask_head],
            box_coding="exp",
            # The lite0 weights were trained on (grey level - 127) / 128.
            preprocess=PreprocessConfig(mean=(127.0,) * 3, std=(128.0,) * 3) if small else PreprocessConfig(),
        )
        return replace(config, **changes)

    def differences(self, other: ModelConfig) -> str:
        """Where another one differs, in words: `size 320, now 512; class_names ('cat',), now ('dog',)`."""
        before, now = ({**values.pop("preprocess"), **values} for values in (asdict(self), asdict(other)))
        return "; ".join(f"{name} {before[name]}, now {now[name]}" for name in before if before[name] != now[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, so that it survives JSON and `torch.load(weights_only=True)`."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: A key is unknown: the file comes from a newer version, or is not ours.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown model settings {unknown}; known are {sorted(known)}")
        changes = _with_tuples(values)
        if "preprocess" in changes:
            changes["preprocess"] = PreprocessConfig(**_with_tuples(changes["preprocess"]))
        return cls(**changes)


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
