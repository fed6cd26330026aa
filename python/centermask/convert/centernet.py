"""CenterNet (github.com/xingyizhou/CenterNet), task `ctdet`: res_18 ..., resdcn_18 ..., dla_34."""

from __future__ import annotations

import re
from collections.abc import Sequence

from centermask.config import ModelConfig, PreprocessConfig
from centermask.convert.classes import VOC_NAMES
from centermask.convert.common import ConvertError, Plan, Rule, Tensors, out_channels, resnet_depth

PREPROCESS = PreprocessConfig(
    policy="keep",
    color="bgr",
    mean=(0.40789654 * 255, 0.44719302 * 255, 0.47026115 * 255),
    std=(0.28863828 * 255, 0.27408164 * 255, 0.27809835 * 255),
)

PASCAL_PREPROCESS = PreprocessConfig(
    size=384,
    policy="fixed_index",
    # ImageNet's numbers for red, green, blue, which the published code applies to blue, green, red.
    color="bgr",
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)

_HEADS = [
    Rule(rf"{theirs}\.{layer}\.(weight|bias)", rf"{ours}.{name}.\1")
    for theirs, ours in (("hm", "heatmap"), ("wh", "size"), ("reg", "offset"))
    for layer, name in (("0", "hidden"), ("2", "out"))
]

# Each of the names is a head that ctdet does not have.
_OTHER_TASKS = {"hps": "multi_pose", "hm_hp": "multi_pose", "dep": "ddd", "rot": "ddd", "hm_t": "exdet"}


def recognises(keys: Sequence[str]) -> bool:
    """Whether the names of the weights are CenterNet's."""
    return any(re.match(r"hm\.|hm\w*\.\d|kps\.|pre\.", key) for key in keys)


def plan(weights: Tensors, class_names: tuple[str, ...], category_ids: tuple[int, ...]) -> Plan:
    """Names and model for a file of CenterNet; see `Plan`.

    Raises:
        ConvertError: It is of another task or architecture.
    """
    config = ModelConfig(
        neck_channels=(256, 128, 64),
        mask_head="none",
        mask_channels=0,
        head_channels=out_channels(weights, "hm.0.weight"),
        offset_head="reg.0.weight" in weights,
        class_names=class_names,
        category_ids=category_ids,
        max_overlap=1.0,
        preprocess=PASCAL_PREPROCESS if class_names == VOC_NAMES else PREPROCESS,
    )
    if any(key.startswith("base.") for key in weights):
        return _dla(weights, config)
    return _resnet(weights, config)


def class_count(weights: Tensors) -> int:
    """Channels of the heatmap.

    Raises:
        ConvertError: It is of another task or architecture.
    """
    tops = {key.partition(".")[0] for key in weights}
    for head, task in _OTHER_TASKS.items():
        if head in tops:
            raise ConvertError(f"a CenterNet of the task {task} (it has a head {head!r}); only ctdet can be converted")
    if tops & {"kps", "pre", "cnvs"}:
        raise ConvertError("a CenterNet with the Hourglass backbone, which is not supported here")
    if "hm.weight" in weights:
        raise ConvertError("a CenterNet trained with --head_conv 0: its heads are of one layer, ours of two")
    count = out_channels(weights, "hm.2.weight")
    if "wh.2.weight" in weights and weights["wh.2.weight"].shape[0] == 2 * count and count > 1:
        raise ConvertError("a CenterNet trained with --cat_spec_wh (a size for each class), which is not supported")
    return count


def _resnet(weights: Tensors, base: ModelConfig) -> Plan:
    depth = resnet_depth(weights, "layer{}.")
    rules = [*_HEADS, Rule(r"((?:conv1|bn1|layer[1-4])\..*)", r"backbone.body.\1"), Rule(r"fc\..*", None)]
    deformable = "deconv_layers.0.conv_offset_mask.weight" in weights
    for stage in range(3):
        if deformable:
            first = 6 * stage
            parts = [(0, "conv"), (1, "bn1"), (3, "up"), (4, "bn2")]
            offset = rf"deconv_layers\.{first}\.conv_offset_mask\.(\w+)"
            rules.append(Rule(offset, rf"neck.stages.{stage}.conv.conv_offset.\1"))
        else:
            first = 3 * stage
            parts = [(0, "up"), (1, "bn2")]
        rules += [Rule(rf"deconv_layers\.{first + i}\.(\w+)", rf"neck.stages.{stage}.{name}.\1") for i, name in parts]
    last = "deconv_layers.{}.weight"
    # A transposed convolution's second dimension is its output.
    ups = [weights.get(last.format(6 * i + 3 if deformable else 3 * i)) for i in range(3)]
    if any(up is None for up in ups):
        raise ConvertError("a CenterNet whose deconv_layers are not those of res_N or resdcn_N")
    channels = tuple(int(up.shape[1]) for up in ups if up is not None)
    return Plan(_changed(base, f"resnet{depth}", "dcn" if deformable else "deconv", channels), rules, weights)


def _dla(weights: Tensors, base: ModelConfig) -> Plan:
    if "dla_up.ida_0.proj_1.conv.conv_offset_mask.weight" not in weights:
        raise ConvertError("a CenterNet with a DLA, but not dla_34 with deformable convolutions; dlav0 is not known")
    rules = [
        *_HEADS,
        # The classifier, and two projections of inner trees that the network computes and does not use.
        Rule(r"base\.(fc|level[34]\.project)\..*", None),
        Rule(r"base\.(.*)", r"backbone.body.\1"),
    ]
    for prefix, ours in [(rf"dla_up\.ida_{i}", f"neck.rounds.{i}") for i in range(3)] + [("ida_up", "neck.last")]:
        for number in range(1, 4):
            merge = f"{ours}.{number - 1}"
            rules.append(Rule(rf"{prefix}\.up_{number}\.weight", rf"{merge}.up.weight"))
            for part in ("proj", "node"):
                block = rf"{prefix}\.{part}_{number}"
                rules += [
                    Rule(rf"{block}\.conv\.conv_offset_mask\.(\w+)", rf"{merge}.{part}.conv.conv_offset.\1"),
                    Rule(rf"{block}\.conv\.(\w+)", rf"{merge}.{part}.conv.\1"),
                    Rule(rf"{block}\.actf\.0\.(\w+)", rf"{merge}.{part}.bn.\1"),
                ]
    return Plan(_changed(base, "dla34", "dlaup", (256, 128, 64)), rules, weights)


def _changed(base: ModelConfig, backbone: str, neck: str, channels: tuple[int, ...]) -> ModelConfig:
    values = base.to_dict()
    return ModelConfig.from_dict({**values, "backbone": backbone, "neck": neck, "neck_channels": list(channels)})
