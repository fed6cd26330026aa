"""Ways of testing that published figures were measured with: mirror images, several scales, rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask.instances import ImageInput, Instances
from centermask.predictor import Predictor, Timing, boxes_in_image
from centermask.preprocess import prepare


@dataclass(frozen=True)
class EvalProtocol:
    """How a model is evaluated.

    Attributes:
        flip: Average scores and sizes with those of the mirror image (checkpoints only).
        scales: The picture is tested at each of these, and the boxes are joined by Soft-NMS where there are several.
        published: As CenterNet, mmdetection and CenterNet-better: however low its score, a peak counts, boxes are not
            clipped to the picture, and none is removed for overlapping another.
        decimals: Digits after the point that boxes and scores of the results keep; None keeps all. CenterNet writes 2.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    published: bool = False
    decimals: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 4 for scale in self.scales):
            raise ValueError(f"eval: scales must be in 0.1..4, got {self.scales}")
        if self.decimals is not None and not 0 <= self.decimals <= 9:
            raise ValueError(f"eval: decimals must be in 0..9, got {self.decimals}")

    def rounded(self, row: dict[str, Any]) -> dict[str, Any]:
        """A COCO result with `bbox` and `score` rounded."""
        if self.decimals is None:
            return row
        box = [round(value, self.decimals) for value in row["bbox"]]
        return {**row, "bbox": box, "score": round(row["score"], self.decimals)}


class ScaledPredictor(Predictor):
    """A Predictor that tests each picture at several scales, as CenterNet's multi-scale test.

    Under `keep` the picture is resized (bilinear, sides rounded down) and its boxes are divided by the scale; under
    `fit` the input's size is multiplied by it. With more than one scale, Soft-NMS joins the boxes of each class and
    the best `top_k` stay.

    Args:
        scales: One or more.
        **settings: Of `Predictor`.

    Raises:
        ValueError: The model gives masks, or its size policy is `fixed` or `fixed_index`.
    """

    def __init__(self, *args: Any, scales: tuple[float, ...], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.scales = scales
        if self.info.mask_head != "none":
            raise ValueError("several scales: masks of one object at different scales cannot be joined; boxes only")
        if self.info.preprocess.policy not in ("keep", "fit"):
            raise ValueError(f"several scales: size policy must be keep or fit, got {self.info.preprocess.policy}")

    def _predict(self, image: NDArray[np.uint8], source: ImageInput) -> Instances:
        start = perf_counter()
        size = (image.shape[0], image.shape[1])
        parts = [self._at(image, scale) for scale in self.scales]
        boxes, scores, labels = (np.concatenate(values) for values in zip(*parts, strict=True))
        if len(self.scales) > 1:
            rows, scores = soft_nms_by_class(boxes, scores, labels)
            boxes, labels = boxes[rows], labels[rows]
        if self.clip_boxes:
            boxes = boxes.clip(0, [size[1], size[0], size[1], size[0]])
        best = np.argsort(-scores, kind="stable")
        most = self.info.top_k if self.max_instances is None else min(self.info.top_k, self.max_instances)
        best = best[scores[best] >= self.score_threshold][:most]
        self._timing = Timing(0.0, perf_counter() - start, 0.0)
        return Instances(
            boxes[best].astype(np.float32),
            scores[best],
            labels[best],
            image_size=size,
            class_names=self.info.class_names,
            category_ids=self.info.category_ids,
            source=source,
        )

    def _at(
        self, image: NDArray[np.uint8], scale: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
        """Boxes [n, 4] in pixels of the picture, scores [n], labels [n]."""
        settings, divisor = self.info.preprocess, 1.0
        if settings.policy == "fit":
            settings = replace(settings, size=max(1, round(settings.size * scale)))
        elif scale != 1:
            sides = (max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale)))
            image, divisor = cv2.resize(image, sides).astype(np.uint8, copy=False), scale
        network_input, image_to_input = prepare(image, settings, threads=self._threads)
        output = self.network(network_input[None])
        count = int(output.count[0])
        boxes = boxes_in_image(output.boxes[0, :count], image_to_input) / divisor
        return boxes, output.scores[0, :count], output.labels[0, :count]


def soft_nms_by_class(
    boxes: NDArray[np.float64], scores: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`soft_nms` within each class: the rows that stay, and their scores."""
    rows, lowered = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        kept, values = soft_nms(boxes[own], scores[own])
        rows.append(own[kept])
        lowered.append(values)
    return np.concatenate(rows), np.concatenate(lowered)


def soft_nms(
    boxes: NDArray[np.float64], scores: NDArray[np.float32], *, sigma: float = 0.5, lowest: float = 0.001
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Soft-NMS with the Gaussian penalty (Bodla et al. 2017, arXiv 1704.04503).

    Box after box, the best first, lowers the scores of those that overlap it by exp(-IoU^2 / sigma). Sides are counted
    in whole pixels (x1 - x0 + 1), as in the published code.

    Args:
        boxes: [n, 4] xyxy in pixels.
        scores: [n].
        sigma: Width of the Gaussian.
        lowest: A box whose score falls below it goes.

    Returns:
        The rows that stay, best first, and their new scores.
    """
    waiting = np.arange(len(boxes), dtype=np.int64)
    values = scores.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    kept: list[int] = []
    while len(waiting):
        best = waiting[np.argmax(values[waiting])]
        kept.append(int(best))
        waiting = waiting[waiting != best]
        low = np.maximum(boxes[waiting, :2], boxes[best, :2])
        high = np.minimum(boxes[waiting, 2:], boxes[best, 2:])
        common = (high - low + 1).clip(min=0).prod(axis=1)
        overlap = common / np.maximum(areas[waiting] + areas[best] - common, 1e-9)
        values[waiting] *= np.exp(-(overlap**2) / sigma)
        waiting = waiting[(common == 0) | (values[waiting] >= lowest)]
    rows = np.array(kept, np.int64)
    return rows, values[rows].astype(np.float32)
