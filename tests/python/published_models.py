"""Published detectors, stated again in few lines from their papers and public definitions, on torchvision's operators.

Only the names of the weights and the order of the computation count here: they are what `centermask convert` has to get
right. Nothing of centermask is used.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

RESNETS = {18: torchvision.models.resnet18, 50: torchvision.models.resnet50, 101: torchvision.models.resnet101}


class Dcn(nn.Module):
    """DCNv2; `offset_name` is what the family calls the convolution that gives 18 offsets and 9 mask logits."""

    def __init__(self, inputs: int, outputs: int, offset_name: str, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5)
        self.bias = nn.Parameter(torch.randn(outputs) * 0.1) if bias else None
        self.offset_name = offset_name
        self.add_module(offset_name, nn.Conv2d(inputs, 27, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y, x_, m = torch.chunk(self.get_submodule(self.offset_name)(x), 3, dim=1)
        # CenterNet and mmcv: the first two thirds, joined again, are (dy, dx) of each tap in turn.
        return deform_conv2d(x, torch.cat([y, x_], 1), self.weight, self.bias, padding=1, mask=torch.sigmoid(m))


def head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)


class CenterNetResNet(nn.Module):
    """xingyizhou/CenterNet: res_N (`deformable=False`) and resdcn_N."""

    def __init__(self, depth: int, deformable: bool, classes: int, reg: bool = True) -> None:
        super().__init__()
        trunk = RESNETS[depth]()
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(trunk, name))
        last = 2048 if depth >= 50 else 512
        layers: list[nn.Module] = []
        for outputs in (256, 128, 64) if deformable else (256, 256, 256):
            if deformable:
                layers += [Dcn(last, outputs, "conv_offset_mask"), nn.BatchNorm2d(outputs), nn.ReLU()]
                last = outputs
            layers += [deconv(last, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
            last = outputs
        self.deconv_layers = nn.Sequential(*layers)
        self.hm, self.wh = head(last, 64, classes), head(last, 64, 2)
        if reg:
            self.reg = head(last, 64, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.deconv_layers(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return {name: getattr(self, name)(x) for name in ("hm", "wh", "reg") if hasattr(self, name)}


class Block(nn.Module):
    """A residual block of two convolutions whose shortcut may come from outside."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if shortcut is None else shortcut))


class Root(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, *x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(torch.cat(x, 1))))


class Tree(nn.Module):
    """Hierarchical aggregation (Yu et al. 2018, figure 3): two subtrees and a root that sees all leaves on the way."""

    def __init__(
        self, levels: int, inputs: int, outputs: int, stride: int, see_input: bool = False, extra: int = 0
    ) -> None:
        super().__init__()
        seen = 2 * outputs + extra + (inputs if see_input else 0)
        self.levels, self.stride, self.see_input = levels, stride, see_input
        if levels == 1:
            self.tree1, self.tree2 = Block(inputs, outputs, stride), Block(outputs, outputs)
            self.root = Root(seen, outputs)
        else:
            self.tree1 = Tree(levels - 1, inputs, outputs, stride)  # type: ignore[assignment]
            more = seen - outputs
            self.tree2 = Tree(levels - 1, outputs, outputs, 1, extra=more)  # type: ignore[assignment]
        # Published code makes it for trees of trees as well, where nothing reads it.
        self.project = None
        if inputs != outputs:
            self.project = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, leaves: tuple[Tensor, ...] = ()) -> Tensor:
        small = F.max_pool2d(x, self.stride) if self.stride > 1 else x
        if self.see_input:
            leaves = (*leaves, small)
        if self.levels > 1:
            first = self.tree1(x)
            return self.tree2(first, (*leaves, first))
        first = self.tree1(x, self.project(small) if self.project is not None else small)
        return self.root(self.tree2(first), first, *leaves)


class Dla34(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def simple(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

        self.base_layer, self.level0, self.level1 = simple(3, 16, 7, 1), simple(16, 16, 3, 1), simple(16, 32, 3, 2)
        self.level2 = Tree(1, 32, 64, 2)
        self.level3 = Tree(2, 64, 128, 2, see_input=True)
        self.level4 = Tree(2, 128, 256, 2, see_input=True)
        self.level5 = Tree(1, 256, 512, 2, see_input=True)
        self.fc = nn.Conv2d(512, 10, 1)  # the ImageNet classifier, carried along and never used

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.base_layer(x)]
        for i in range(6):
            maps.append(getattr(self, f"level{i}")(maps[-1]))
        return maps[3:]  # strides 4, 8, 16, 32


class IdaUp(nn.Module):
    """proj_i, up_i, node_i for each map but the first."""

    def __init__(self, outputs: int, inputs: list[int], factors: list[int]) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            parts = {"conv": Dcn(i, o, "conv_offset_mask"), "actf": nn.Sequential(nn.BatchNorm2d(o), nn.ReLU())}
            return nn.Sequential(OrderedDict(parts))

        for i, (channels, f) in enumerate(zip(inputs, factors, strict=True), 1):
            self.add_module(f"proj_{i}", block(channels, outputs))
            up = nn.ConvTranspose2d(outputs, outputs, 2 * f, f, f // 2, groups=outputs, bias=False)
            self.add_module(f"up_{i}", up)
            self.add_module(f"node_{i}", block(outputs, outputs))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        result = [maps[0]]
        for i, x in enumerate(maps[1:], 1):
            up = getattr(self, f"up_{i}")(getattr(self, f"proj_{i}")(x))
            result.append(getattr(self, f"node_{i}")(up + result[-1]))
        return result


class CenterNetDla(nn.Module):
    """xingyizhou/CenterNet: dla_34."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.base = Dla34()
        rounds = [IdaUp(256, [512], [2]), IdaUp(128, [256, 256], [2, 2]), IdaUp(64, [128, 128, 128], [2, 2, 2])]
        self.dla_up = nn.Module()
        for i, ida in enumerate(rounds):
            self.dla_up.add_module(f"ida_{i}", ida)
        self.ida_up = IdaUp(64, [128, 256], [2, 4])
        self.hm, self.wh, self.reg = head(64, 256, classes), head(64, 256, 2), head(64, 256, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        layers = self.base(x)
        outs: list[Tensor] = []
        for i in range(3):  # the published code works in place on the tail of one list
            start = 2 - i
            layers[start + 1 :] = getattr(self.dla_up, f"ida_{i}")(layers[start:])[1:]
            outs.insert(0, layers[-1])
        y = self.ida_up(outs)[-1]
        return {name: getattr(self, name)(y) for name in ("hm", "wh", "reg")}


class MmdetNeck(nn.Module):
    def __init__(self, deformable: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 512
        for outputs in (256, 128, 64):
            plain = nn.Conv2d(last, outputs, 3, 1, 1, bias=False)
            conv = Dcn(last, outputs, "conv_offset", bias=False) if deformable else plain
            for part in (conv, deconv(outputs, outputs)):
                named = {"conv": part, "bn": nn.BatchNorm2d(outputs), "activate": nn.ReLU()}
                layers.append(nn.Sequential(OrderedDict(named)))
            last = outputs
        self.deconv_layers = nn.Sequential(*layers)


class Mmdet(nn.Module):
    """open-mmlab/mmdetection: centernet_r18, with and without dcnv2."""

    def __init__(self, deformable: bool, classes: int) -> None:
        super().__init__()
        self.backbone = RESNETS[18]()
        del self.backbone.fc
        self.neck = MmdetNeck(deformable)
        self.bbox_head = nn.Module()
        for name, outputs in (("heatmap", classes), ("wh", 2), ("offset", 2)):
            self.bbox_head.add_module(f"{name}_head", head(64, 64, outputs))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        b = self.backbone
        x = b.maxpool(torch.relu(b.bn1(b.conv1(x))))
        x = self.neck.deconv_layers(b.layer4(b.layer3(b.layer2(b.layer1(x)))))
        names = {"hm": "heatmap_head", "wh": "wh_head", "reg": "offset_head"}
        return {short: getattr(self.bbox_head, name)(x) for short, name in names.items()}


class BetterDcn(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        whole = Dcn(inputs, outputs, "offset_mask_conv")
        self.offset_mask_conv = whole.offset_mask_conv
        self.dcnv2 = nn.Module()
        self.dcnv2.weight, self.dcnv2.bias = whole.weight, whole.bias

    def forward(self, x: Tensor) -> Tensor:
        y, x_, m = torch.chunk(self.offset_mask_conv(x), 3, dim=1)
        offset = torch.cat([y, x_], 1)
        return deform_conv2d(x, offset, self.dcnv2.weight, self.dcnv2.bias, padding=1, mask=torch.sigmoid(m))


class Better(nn.Module):
    """FateScript/CenterNet-better; without `deformable` a plain convolution with bias stands where the DCN was."""

    def __init__(self, depth: int, deformable: bool, classes: int) -> None:
        super().__init__()
        trunk = RESNETS[depth]()
        self.backbone, self.upsample, self.head = nn.Module(), nn.Module(), nn.Module()
        self.backbone.stage0 = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        for i in range(1, 5):
            self.backbone.add_module(f"stage{i}", getattr(trunk, f"layer{i}"))
        last = 2048 if depth >= 50 else 512
        for i, outputs in enumerate((256, 128, 64), 1):
            stage = {
                "dcn": BetterDcn(last, outputs) if deformable else nn.Conv2d(last, outputs, 3, 1, 1),
                "dcn_bn": nn.BatchNorm2d(outputs),
                "relu": nn.ReLU(),
                "up_sample": deconv(outputs, outputs),
                "up_bn": nn.BatchNorm2d(outputs),
                "relu2": nn.ReLU(),
            }
            self.upsample.add_module(f"deconv{i}", nn.Sequential(OrderedDict(stage)))
            last = outputs
        for name, outputs in (("cls", classes), ("wh", 2), ("reg", 2)):
            parts = head(64, 64, outputs)
            named = {"feat_conv": parts[0], "relu": parts[1], "out_conv": parts[2]}
            self.head.add_module(f"{name}_head", nn.Sequential(OrderedDict(named)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for i in range(5):
            x = getattr(self.backbone, f"stage{i}")(x)
        for i in range(1, 4):
            x = getattr(self.upsample, f"deconv{i}")(x)
        names = {"hm": "cls_head", "wh": "wh_head", "reg": "reg_head"}
        return {short: getattr(self.head, name)(x) for short, name in names.items()}


@torch.no_grad()
def randomise(model: nn.Module, images: Tensor) -> nn.Module:
    """Weights as they could have been learned: norms with statistics of their own, offsets of a cell or two.

    A pass in training mode makes the norms fit the data, as otherwise sixty layers of random weights explode or die.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "offset" in name.rpartition(".")[2] and module.out_channels == 27:
            module.weight.normal_(std=0.5 / (9 * module.in_channels) ** 0.5)
            module.bias.normal_(std=1.0)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(std=0.2)
    model.train()
    model(images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 0.1 * torch.randn_like(module.running_mean) * module.running_var.sqrt()
            module.running_var *= torch.empty_like(module.running_var).uniform_(0.8, 1.25)
    model.eval()
    out = model(images)
    # Heads with values worth comparing: sizes that are positive, scores from near 0 to near 1.
    last = {"hm": (2.0, -2.0), "wh": (1.0, 8.0), "reg": (0.3, 0.5)}
    finals = {
        "hm": ("hm.2", "bbox_head.heatmap_head.2", "head.cls_head.out_conv"),
        "wh": ("wh.2", "bbox_head.wh_head.2", "head.wh_head.out_conv"),
        "reg": ("reg.2", "bbox_head.offset_head.2", "head.reg_head.out_conv"),
    }
    for name, module in model.named_modules():
        for short, names in finals.items():
            if name in names:
                spread, bias = last[short]
                scale = spread / out[short].std()
                middle = out[short].mean((0, 2, 3)) - module.bias
                module.weight.mul_(scale)
                module.bias.copy_(bias - scale * middle + 0.1 * torch.randn_like(middle))
    return model


def decode(out: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """CenterNet's decoding of one picture: boxes [n, 4] xyxy in cells, scores [n], labels [n], best first."""
    heat = torch.sigmoid(out["hm"])[0]
    height, width = heat.shape[1:]
    peak = heat * (F.max_pool2d(heat[None], 3, 1, 1)[0] == heat)
    scores, place = peak.flatten().topk(min(count, heat.numel()))
    labels, index = place // (height * width), place % (height * width)
    y, x = index // width, index % width
    offset = out["reg"][0, :, y, x] if "reg" in out else torch.full((2, len(x)), 0.5)
    size = out["wh"][0, :, y, x]
    center = torch.stack([x, y]).float() + offset
    return torch.cat([center - size / 2, center + size / 2]).T, scores, labels
