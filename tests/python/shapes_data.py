"""A small data set of drawn shapes, something that a network could learn, and a small network."""

from __future__ import annotations

import json

import cv2
import numpy as np
import torch

from centermask.config import ModelConfig
from centermask.nn.model import CenterMask
from centermask.training.augment import TrainTransform
from centermask.training.data import load_datasets
from centermask.training.loader import make_loader

SHAPES = ("box", "disc")


def shapes_folder(root, *, pictures=6, seed=0, side=72, categories=SHAPES, splits=("train",)):
    """Writes pictures of a box and a disc each, on noise, with the annotations of `categories` alone."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for key in range(1, pictures + 1):
        picture = rng.integers(0, 60, (side, side, 3), np.uint8)
        for name in SHAPES:
            radius = int(rng.integers(8, 16))
            x, y = (int(v) for v in rng.integers(radius + 1, side - radius - 1, 2))
            if name == "box":
                outline = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * radius + (x, y)
                cv2.rectangle(picture, (x - radius, y - radius), (x + radius, y + radius), (40, 60, 230), -1)
            else:
                turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
                outline = np.stack([np.cos(turn), np.sin(turn)], 1) * radius + (x, y)
                cv2.circle(picture, (x, y), radius, (220, 200, 30), -1)
            if name in categories:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": key,
                        "category_id": categories.index(name) + 1,
                        "iscrowd": 0,
                        "segmentation": [outline.astype(float).ravel().round(2).tolist()],
                        "bbox": [float(x - radius), float(y - radius), 2.0 * radius, 2.0 * radius],
                        "area": float(4 * radius**2 if name == "box" else 3.1 * radius**2),
                    }
                )
        cv2.imwrite(str(root / "images" / f"{key}.png"), picture)
        images.append({"id": key, "file_name": f"{key}.png", "width": side, "height": side})
    rows = [{"id": i, "name": name} for i, name in enumerate(categories, start=1)]
    for split in splits:
        content = {"images": images, "annotations": annotations, "categories": rows}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def batch_of(folder, count=2, size=64):
    """The first `count` augmented samples of a folder."""
    loader, _ = make_loader(load_datasets([folder], "train"), TrainTransform(size), batch_size=count, seed=0)
    return next(iter(loader))


def tiny(name="test_efficientnet-conv-dynamic", classes=("box", "disc"), **changes):
    """An untrained model on timm's backbone for tests."""
    torch.manual_seed(0)
    ids = tuple(range(1, len(classes) + 1))
    return CenterMask(ModelConfig.from_name(name, class_names=classes, category_ids=ids, **changes))
