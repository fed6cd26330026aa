"""CenterNet-better (github.com/FateScript/CenterNet-better): R18, R50, R101, with DCN or plain convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from centermask.config import ModelConfig, PreprocessConfig
from centermask.convert.common import Plan, Rule, Tensors, out_channels, resnet_depth

PREPROCESS = PreprocessConfig(
    policy="keep",
    color="rgb",
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)

_RULES = [
    Rule(rf"head\.{theirs}_head\.{layer}_conv\.(weight|bias)", rf"{ours}.{name}.\1")
    for theirs, ours in (("cls", "heatmap"), ("wh", "size"), ("reg", "offset"))
    for layer, name in (("feat", "hidden"), ("out", "out"))
] + [
    Rule(r"backbone\.stage0\.0\.(\w+)", r"backbone.body.conv1.\1"),
    Rule(r"backbone\.stage0\.1\.(\w+)", r"backbone.body.bn1.\1"),
    Rule(r"backbone\.stage([1-4])\.(.*)", r"backbone.body.layer\1.\2"),
    *(
        Rule(rf"upsample\.deconv{stage + 1}\.{theirs}\.(\w+)", rf"neck.stages.{stage}.{ours}.\1")
        for stage in range(3)
        for theirs, ours in (
            (r"dcn\.offset_mask_conv", "conv.conv_offset"),
            (r"dcn\.dcnv2", "conv"),
            ("dcn", "conv"),  # a plain convolution in its place
            ("dcn_bn", "bn1"),
            ("up_sample", "up"),
            ("up_bn", "bn2"),
        )
    ),
]


def recognises(keys: Sequence[str]) -> bool:
    """Whether the names of the weights are CenterNet-better's."""
    return any(key.startswith(("head.cls_head.", "upsample.deconv")) for key in keys)


def class_count(weights: Tensors) -> int:
    """Channels of the heatmap.

    Raises:
        ConvertError: There is none.
    """
    return out_channels(weights, "head.cls_head.out_conv.weight")


def _modulated(weights: Tensors) -> dict[str, Tensor]:
    """A deformable convolution without masks (`MODULATE_DEFORM=False`) as one whose masks are 1 everywhere."""
    result = dict(weights)
    for stage in (1, 2, 3):
        dcn = f"upsample.deconv{stage}.dcn"
        names = (f"{dcn}.offset_conv.weight", f"{dcn}.offset_conv.bias", f"{dcn}.dcn.weight")
        if all(name in result for name in names):
            weight, bias, own = (result.pop(name) for name in names)
            taps = len(bias) // 2
            result[f"{dcn}.offset_mask_conv.weight"] = torch.cat([weight, torch.zeros_like(weight[:taps])])
            # The sigmoid of 50 is 1 in float32.
            result[f"{dcn}.offset_mask_conv.bias"] = torch.cat([bias, torch.full_like(bias[:taps], 50.0)])
            result[f"{dcn}.dcnv2.weight"] = own
    return result


def plan(weights: Tensors, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> Plan:
    """Names and model for a file of CenterNet-better; see `Plan`."""
    weights = _modulated(weights)
    deformable = "upsample.deconv1.dcn.offset_mask_conv.weight" in weights
    notes: tuple[str, ...] = ()
    if not deformable:
        notes = ("the convolutions in front of the upsamplings are taken to have padding 1; the file does not tell",)
        for stage in (1, 2, 3):
            # Ours have no bias; the norm that follows takes it over.
            bias = weights.pop(f"upsample.deconv{stage}.dcn.bias", None)
            mean = f"upsample.deconv{stage}.dcn_bn.running_mean"
            if bias is not None and mean in weights:
                weights[mean] = weights[mean] - bias
    first = "upsample.deconv{}.dcn.dcnv2.weight" if deformable else "upsample.deconv{}.dcn.weight"
    a, b, c = (out_channels(weights, first.format(stage)) for stage in (1, 2, 3))
    config = ModelConfig(
        backbone=f"resnet{resnet_depth(weights, 'backbone.stage{}.')}",
        neck="dcn" if deformable else "conv",
        neck_channels=(a, b, c),
        mask_head="none",
        mask_channels=0,
        head_channels=out_channels(weights, "head.cls_head.feat_conv.weight"),
        class_names=class_names,
        category_ids=category_ids,
        max_overlap=1.0,
        preprocess=PREPROCESS,
    )
    return Plan(config, _RULES, weights, notes)
