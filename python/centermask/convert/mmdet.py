"""mmdetection's CenterNet (configs/centernet/centernet_r18*), with and without DCNv2; mmdetection 2 and 3."""

from __future__ import annotations

from collections.abc import Sequence

from centermask.config import ModelConfig, PreprocessConfig
from centermask.convert.common import ConvertError, Plan, Rule, Tensors, out_channels, resnet_depth

PREPROCESS = PreprocessConfig(policy="keep", color="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))

_RULES = [
    Rule(rf"bbox_head\.{theirs}_head\.{layer}\.(weight|bias)", rf"{ours}.{name}.\1")
    for theirs, ours in (("heatmap", "heatmap"), ("wh", "size"), ("offset", "offset"))
    for layer, name in (("0", "hidden"), ("2", "out"))
] + [
    Rule(r"backbone\.((?:conv1|bn1|layer[1-4])\..*)", r"backbone.body.\1"),
    *(
        Rule(rf"neck\.deconv_layers\.{2 * stage + shift}\.{theirs}", rf"neck.stages.{stage}.{ours}.\1")
        for stage in range(3)
        for shift, theirs, ours in (
            # mmcv writes `conv.conv_offset.*`, or `conv_offset.*` before version 2 of the layer.
            (0, r"(?:conv\.)?conv_offset\.(\w+)", "conv.conv_offset"),
            (0, r"conv\.(\w+)", "conv"),
            (0, r"bn\.(\w+)", "bn1"),
            (1, r"conv\.(\w+)", "up"),
            (1, r"bn\.(\w+)", "bn2"),
        )
    ),
]


def recognises(keys: Sequence[str]) -> bool:
    """Whether the names of the weights are mmdetection's."""
    return any(key.startswith("bbox_head.") for key in keys)


def class_count(weights: Tensors) -> int:
    """Channels of the heatmap.

    Raises:
        ConvertError: It is another detector.
    """
    if "bbox_head.heatmap_head.2.weight" not in weights:
        heads = sorted({".".join(key.split(".")[:2]) for key in weights if key.startswith("bbox_head.")})
        raise ConvertError(
            f"another detector of mmdetection than CenterNet (its head has {', '.join(heads)}); "
            "centernet_r18 with and without dcnv2 can be converted, centernet-update cannot"
        )
    return out_channels(weights, "bbox_head.heatmap_head.2.weight")


def plan(weights: Tensors, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> Plan:
    """Names and model for a file of mmdetection; see `Plan`."""
    old, new = (f"neck.deconv_layers.0.{name}conv_offset.weight" for name in ("", "conv."))
    a, b, c = (out_channels(weights, f"neck.deconv_layers.{stage}.conv.weight") for stage in (0, 2, 4))
    config = ModelConfig(
        backbone=f"resnet{resnet_depth(weights, 'backbone.layer{}.')}",
        neck="dcn" if old in weights or new in weights else "conv",
        neck_channels=(a, b, c),
        mask_head="none",
        mask_channels=0,
        head_channels=out_channels(weights, "bbox_head.heatmap_head.0.weight"),
        class_names=class_names,
        category_ids=category_ids,
        max_overlap=1.0,
        preprocess=PREPROCESS,
    )
    return Plan(config, _RULES, weights)
