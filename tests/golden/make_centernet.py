"""Makes centernet_*.npz and better_*.npz: what the published code gives with made-up weights.

    git clone https://github.com/xingyizhou/CenterNet A && git -C A checkout 4c50fd3
    git clone https://github.com/FateScript/CenterNet-better B && git -C B checkout 972dbf2
    PYTHONPATH=tests/python python tests/golden/make_centernet.py A B

Backbones, necks, heads and CenterNet's decoding are those projects' own files, loaded one by one. Their compiled
deformable convolutions are replaced by the classes below, on torchvision's operator, with the same parameters.

A file holds the names and shapes of the state dict, and for the weights and the picture of
tests/python/golden_weights.py the heatmap (after the sigmoid), wh, offset, and, in input pixels, the decoded boxes with
scores and labels.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import golden_weights
import numpy as np
import torch
from torch import nn
from torchvision.ops import deform_conv2d

CLASSES = 5
HEADS = {"hm": CLASSES, "wh": 2, "reg": 2}


class Weights(nn.Module):
    """The parameters of a deformable convolution; called with x, offset and perhaps mask."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, bias: bool = True, **_: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)


class Unmodulated(Weights):
    """CenterNet-better's DeformConv has no bias."""

    def __init__(self, inputs: int, outputs: int, **_: object) -> None:
        super().__init__(inputs, outputs, bias=False)


class DCN(Weights):
    """CenterNet's DCN."""

    def __init__(self, inputs: int, outputs: int, **_: object) -> None:
        super().__init__(inputs, outputs)
        self.conv_offset_mask = nn.Conv2d(inputs, 27, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        first, second, mask = torch.chunk(self.conv_offset_mask(x), 3, dim=1)
        return super().forward(x, torch.cat((first, second), dim=1), torch.sigmoid(mask))


def stub(name: str, **values: object) -> types.ModuleType:
    """A module with these names in it."""
    module = types.ModuleType(name)
    module.__dict__.update(values)
    module.__path__ = []
    sys.modules[name] = module
    return module


def load(name: str, path: Path) -> Any:
    """One file as a module of that name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def centernet(root: Path) -> tuple[dict[str, nn.Module], Any]:
    """CenterNet's models, and its decoding."""
    networks = root / "src" / "lib" / "models" / "networks"
    for name in ("models", "models.networks", "models.networks.DCNv2"):
        stub(name)
    stub("models.networks.DCNv2.dcn_v2", DCN=DCN)
    load("models.utils", networks.parent / "utils.py")
    decode = load("models.decode", networks.parent / "decode.py")
    plain = load("models.networks.msra_resnet", networks / "msra_resnet.py")
    deformable = load("models.networks.resnet_dcn", networks / "resnet_dcn.py")
    dla = load("models.networks.pose_dla_dcn", networks / "pose_dla_dcn.py")
    models = {
        "centernet_res_18": plain.PoseResNet(plain.BasicBlock, [2, 2, 2, 2], HEADS, 64),
        "centernet_resdcn_18": deformable.PoseResNet(deformable.BasicBlock, [2, 2, 2, 2], HEADS, 64),
        "centernet_dla_34": dla.DLASeg("dla34", HEADS, False, 4, 1, 5, 256),
    }
    return models, decode.ctdet_decode


class Chain(nn.Module):
    """CenterNet-better's parts, in the order of its `CenterNet.forward`."""

    def __init__(self, backbone: nn.Module, upsample: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.upsample, self.head = backbone, upsample, head

    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        out = self.head(self.upsample(self.backbone(x)))
        return [{"hm": torch.logit(out["cls"].double()), "wh": out["wh"], "reg": out["reg"]}]


def better(root: Path) -> dict[str, nn.Module]:
    """CenterNet-better's models, modulated and not."""
    lib = root / "dl_lib"
    for name in ("dl_lib", "dl_lib.layers.deformable", "dl_lib.network", "dl_lib.network.backbone"):
        stub(name)
    stub("dl_lib.layers.deformable.deform_conv", DeformConv=Unmodulated, ModulatedDeformConv=Weights)
    path = lib / "layers" / "deformable" / "deform_conv_with_off.py"
    layers = load("dl_lib.layers.deformable.deform_conv_with_off", path)
    stub("dl_lib.layers", ShapeSpec=object, **{k: v for k, v in vars(layers).items() if k.endswith("WithOff")})
    load("dl_lib.network.backbone.backbone", lib / "network" / "backbone" / "backbone.py")
    trunk = load("dl_lib.network.backbone.resnet_backbone", lib / "network" / "backbone" / "resnet_backbone.py")
    upsample = load("dl_lib.network.head.centernet_deconv", lib / "network" / "head" / "centernet_deconv.py")
    head = load("dl_lib.network.head.centernet_head", lib / "network" / "head" / "centernet_head.py")
    models = {}
    for name, modulated in (("better_r18", True), ("better_r18_dcnv1", False)):
        settings = {"DECONV_CHANNEL": [512, 256, 128, 64], "DECONV_KERNEL": [4, 4, 4], "MODULATE_DEFORM": modulated}
        settings |= {"NUM_CLASSES": CLASSES, "BIAS_VALUE": -2.19}
        resnets = types.SimpleNamespace(DEPTH=18)
        part = types.SimpleNamespace(CENTERNET=types.SimpleNamespace(**settings), RESNETS=resnets)
        config = types.SimpleNamespace(MODEL=part)
        backbone = trunk.ResnetBackbone(config, pretrained=False)
        models[name] = Chain(backbone, upsample.CenternetDeconv(config), head.CenternetHead(config))
    return models


@torch.no_grad()
def main(centernet_folder: str, better_folder: str) -> None:
    models, decode = centernet(Path(centernet_folder))
    for name, model in {**models, **better(Path(better_folder))}.items():
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(golden_weights.weights_for(shapes))
        out = model.eval()(golden_weights.image())[-1]
        heatmap = torch.sigmoid(out["hm"]).float()
        rows = decode(heatmap, out["wh"], out["reg"], K=100)[0]
        for key, values in (("heatmap", heatmap), ("wh", out["wh"]), ("offset", out["reg"])):
            spread = values.std(dim=(2, 3)).mean()
            print(f"{name} {key}: {values.min():.3f}..{values.max():.3f}, spread over the map {spread:.3f}")
        np.savez_compressed(
            Path(__file__).parent / f"{name}.npz",
            shapes=json.dumps(shapes),
            heatmap=heatmap,
            wh=out["wh"],
            offset=out["reg"],
            boxes=4 * rows[:, :4],
            scores=rows[:, 4],
            labels=rows[:, 5].long(),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
