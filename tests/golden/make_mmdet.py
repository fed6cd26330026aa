"""Makes mmdet_*.npz: what mmdetection's own code gives for its CenterNet with made-up weights.

    pip install --no-deps --target SITE mmdet==3.3.0 mmcv-lite==2.1.0 mmengine==0.10.7 addict terminaltables termcolor
    PYTHONPATH=SITE:tests/python python tests/golden/make_mmdet.py

Backbone, neck, head and decoding are mmdetection 3.3.0's, the layers around them mmcv-lite 2.1.0's. mmcv-lite has no
compiled operators: its DCNv2 is replaced by the one below, on torchvision's operator, with the layout of mmcv's
ModulatedDeformConv2dPack; what else is missing is not used by this model and replaced by empty names.

A file holds the names and shapes of the state dict, and for the weights and the picture of
tests/python/golden_weights.py the heatmap (after the sigmoid), wh, offset, and the decoded boxes, scores and labels.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import re
import sys
import types
from pathlib import Path

import golden_weights
import numpy as np
import torch
from torch import nn
from torchvision.ops import deform_conv2d

CLASSES = 5


class Empty(types.ModuleType):
    """A module in which every name exists and means nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


class EmptyFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports whatever this model has no need of as `Empty`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not re.match(r"(mmcv\.ops|shapely|yapf)\b", name):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class DCNv2(nn.Conv2d):
    """mmcv.ops.ModulatedDeformConv2dPack on torchvision's operator."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.conv_offset = nn.Conv2d(self.in_channels, 27, 3, padding=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        first, second, mask = torch.chunk(self.conv_offset(input), 3, dim=1)
        offset = torch.cat((first, second), dim=1)
        return deform_conv2d(input, offset, self.weight, self.bias, padding=1, mask=torch.sigmoid(mask))


def main() -> None:
    sys.meta_path.insert(0, EmptyFinder())
    import mmcv.cnn  # noqa: F401  (registers layers)
    from mmengine.registry import MODELS

    MODELS.register_module("DCNv2", module=DCNv2)
    from mmdet.models.backbones.resnet import ResNet
    from mmdet.models.dense_heads.centernet_head import CenterNetHead
    from mmdet.models.necks.ct_resnet_neck import CTResNetNeck

    for use_dcn in (True, False):
        model = nn.Module()
        model.backbone = ResNet(18, norm_eval=False, norm_cfg={"type": "BN"})
        model.neck = CTResNetNeck(512, (256, 128, 64), (4, 4, 4), use_dcn=use_dcn)
        model.bbox_head = CenterNetHead(64, 64, CLASSES, test_cfg={"topk": 100, "local_maximum_kernel": 3})
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        model.load_state_dict(golden_weights.weights_for(shapes))
        model.eval()
        image = golden_weights.image()
        with torch.no_grad():
            heatmap, wh, offset = (maps[0] for maps in model.bbox_head(model.neck(model.backbone(image))))
            boxes, labels = model.bbox_head._decode_heatmap(
                heatmap, wh, offset, tuple(image.shape[2:]), k=100, kernel=3
            )
        for name, values in (("heatmap", heatmap), ("wh", wh), ("offset", offset)):
            spread = values.std(dim=(2, 3)).mean()
            print(f"dcn={use_dcn} {name}: {values.min():.3f}..{values.max():.3f}, spread over the map {spread:.3f}")
        np.savez_compressed(
            Path(__file__).parent / f"mmdet_centernet_r18{'_dcnv2' * use_dcn}.npz",
            shapes=json.dumps(shapes),
            heatmap=heatmap,
            wh=wh,
            offset=offset,
            boxes=boxes[0, :, :4],
            scores=boxes[0, :, 4],
            labels=labels[0],
        )


if __name__ == "__main__":
    main()
