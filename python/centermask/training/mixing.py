"""Samples made of several pictures: mosaic and copy-paste. Both are off unless asked for.

Partners come from the same data set as the picture, so that the sample has one answer to which classes it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask.config import STRIDE
from centermask.training.augment import TrainSample, TrainTransform
from centermask.training.coco_reader import ImageRecord
from centermask.training.placing import PlacedObject, cover
from centermask.training.raster import Window

Picture = tuple[ImageRecord, NDArray[np.uint8]]
"""A record and its decoded picture, uint8 [h, w, 3], RGB."""


@dataclass(frozen=True)
class MixOptions:
    """How often pictures are mixed.

    Attributes:
        mosaic: Probability that a sample shows four pictures, one in each corner (YOLOv4, Bochkovskiy et al. 2020).
        mosaic_zoom: Each of them is drawn at a size between this and 1, on top of the transform's own scale.
        copy_paste: Probability that objects of another picture are pasted in (Ghiasi et al. 2021).
        paste_share: Share of the other picture's objects that are pasted, on average.
    """

    mosaic: float = 0.0
    mosaic_zoom: float = 0.5
    copy_paste: float = 0.0
    paste_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mosaic", "copy_paste", "paste_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"MixOptions: {name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 < self.mosaic_zoom <= 1:
            raise ValueError(f"MixOptions: mosaic_zoom must be in (0, 1], got {self.mosaic_zoom}")


def mosaic(
    transform: TrainTransform, pictures: Sequence[Picture], zoom: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], list[PlacedObject], NDArray[np.float64]]:
    """Four pictures around a random point.

    Args:
        transform: Draws each picture's map and colours.
        pictures: Four of them.
        zoom: See `MixOptions`.
        rng: The source of chance.

    Returns:
        uint8 [S, S, 3]; the objects, each cut to its picture's corner; the first picture's `image_to_input`.
    """
    size = transform.size
    x, y = (int(rng.uniform(0.3, 0.7) * size / STRIDE) * STRIDE for _ in range(2))
    frames: list[Window] = [(0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size)]
    image = np.empty((size, size, 3), dtype=np.uint8)
    placed: list[PlacedObject] = []
    matrices = []
    for (record, pixels), frame in zip(pictures, frames, strict=True):
        matrix = transform.draw_matrix(record.width, record.height, rng) * rng.uniform(zoom, 1)
        # The corner shows a random part of the picture, or the whole of it at a random place.
        for axis in range(2):
            extent = matrix[axis, :2] * (record.width, record.height)
            low = matrix[axis, 2] + np.minimum(extent, 0).sum()
            spare = np.abs(extent).sum() - (frame[axis + 2] - frame[axis])
            matrix[axis, 2] += frame[axis] - low - spare * rng.uniform()
        part, objects = transform.render(record, pixels, matrix, frame, rng)
        image[frame[1] : frame[3], frame[0] : frame[2]] = part
        placed += objects
        matrices.append(matrix)
    return image, placed, matrices[0]


def copy_paste(
    transform: TrainTransform,
    image: NDArray[np.uint8],
    placed: Sequence[PlacedObject],
    donor: Picture,
    share: float,
    rng: np.random.Generator,
) -> list[PlacedObject]:
    """Pastes objects of another picture over this one.

    Args:
        transform: Draws the other picture's map and colours.
        image: uint8 [S, S, 3]; changed in place.
        placed: The objects below.
        donor: The other picture.
        share: See `MixOptions`.
        rng: The source of chance.

    Returns:
        What is left of the objects below, then the pasted ones.
    """
    record, pixels = donor
    matrix = transform.draw_matrix(record.width, record.height, rng)
    other, candidates = transform.render(record, pixels, matrix, (0, 0, transform.size, transform.size), rng)
    result = list(placed)
    for item in candidates:
        wanted = rng.uniform() < share
        # Half an animal with a straight edge would only be seen in pasted pictures.
        if not wanted or item.ignore or item.visible < 0.9:
            continue
        x0, y0, x1, y1 = item.window
        # A soft rim, so that the network cannot learn the cut itself; its middle is the mask's outline.
        alpha = cv2.GaussianBlur(item.mask.astype(np.float32), (3, 3), 0)[..., None]
        below = image[y0:y1, x0:x1]
        below[...] = np.rint(below + (other[y0:y1, x0:x1].astype(np.float32) - below) * alpha).astype(np.uint8)
        left = [cover(lower, item.window, item.mask) for lower in result]
        result = [lower for lower in left if lower is not None]
        result.append(item)
    return result


def mixed_sample(
    transform: TrainTransform,
    options: MixOptions,
    first: Picture,
    draw_partner: Callable[[], Picture],
    rng: np.random.Generator,
) -> TrainSample:
    """A sample of a picture and, as chance wants it, of others.

    Args:
        transform: Draws maps and colours.
        options: How often.
        first: The picture that the sample is named after.
        draw_partner: Gives another picture of the same data set, drawn by `rng`.
        rng: The only source of chance.
    """
    record, pixels = first
    size = transform.size
    if rng.uniform() < options.mosaic:
        pictures = [first, *(draw_partner() for _ in range(3))]
        image, placed, matrix = mosaic(transform, pictures, options.mosaic_zoom, rng)
    else:
        matrix = transform.draw_matrix(record.width, record.height, rng)
        image, placed = transform.render(record, pixels, matrix, (0, 0, size, size), rng)
    if rng.uniform() < options.copy_paste:
        placed = copy_paste(transform, image, placed, draw_partner(), options.paste_share, rng)
    return transform.finish(image, placed, record.known_classes, record.image_id, matrix)
