"""From a picture and its annotations to one training sample, with every mask following the same affine map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask.config import STRIDE
from centermask.training.coco_reader import ImageRecord
from centermask.training.placing import PlacedObject, place, rectangle, stack
from centermask.training.raster import Window, fill_rings, pixel_index_matrix

GREY = np.array([0.299, 0.587, 0.114])
"""Luma of RGB, ITU-R BT.601."""

# Principal components of ImageNet's colours (Krizhevsky et al. 2012; figures as in fb.resnet.torch), RGB in 0..1.
LIGHTING_VALUES = np.array([0.2175, 0.0188, 0.0045])
LIGHTING_VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(frozen=True, slots=True)
class TrainSample:
    """One augmented picture with its targets, in input pixels.

    Attributes:
        image: uint8 [S, S, 3], RGB, contiguous.
        boxes: float32 [n, 4], xyxy, tight around the visible part of each mask, inside the picture.
        labels: int64 [n].
        masks: uint8 [n, S/4, S/4]: covered share of each 4x4 block, 0..255.
        ignore: uint8 [m, S/4, S/4]: likewise, of regions that teach nothing.
        ignore_labels: int64 [m]: the class that each of those would have.
        known_classes: bool [C]: the classes whose absence this picture teaches.
        image_id: Of the record.
        image_to_input: float64 [2, 3]: from the record's frame to the sample's.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8]
    ignore: NDArray[np.uint8]
    ignore_labels: NDArray[np.int64]
    known_classes: NDArray[np.bool_]
    image_id: int
    image_to_input: NDArray[np.float64]


@dataclass(frozen=True)
class TrainTransform:
    """A random crop, flip and change of colours; everything is drawn from the generator that the call is given.

    Attributes:
        size: Side S of the square sample; a multiple of 32.
        scale: The crop's side as a share of the picture's longer side, drawn uniformly (CenterNet: 0.6 to 1.3).
            Where the crop is larger than the picture, the rest is filled with `border`.
        aspect: The largest change of the aspect ratio, as a factor; 1 for none.
        rotation: The largest rotation, in degrees either way.
        flip: Probability of a mirror image.
        brightness: Gain between 1 - b and 1 + b; likewise the two below.
        contrast: Distance from the picture's mean grey.
        saturation: Distance of each pixel from its own grey.
        lighting: Standard deviation of the shifts along ImageNet's principal colours.
        border: RGB outside the picture. Black, as in `centermask.preprocess`.
        min_side: An object is ignored if the root of its visible box's area is below this, in input pixels.
        min_visible: Or if less than this share of its area is visible.
    """

    size: int
    scale: tuple[float, float] = (0.6, 1.3)
    aspect: float = 1.0
    rotation: float = 0.0
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    lighting: float = 0.1
    border: tuple[int, int, int] = (0, 0, 0)
    min_side: float = 4.0
    min_visible: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"TrainTransform: size must be a positive multiple of 32, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"TrainTransform: scale must be (low, high) with 0 < low <= high, got {self.scale}")
        if self.aspect < 1:
            raise ValueError(f"TrainTransform: aspect must be at least 1, got {self.aspect}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TrainTransform: {name} must be in [0, 1), got {getattr(self, name)}")

    @classmethod
    def plain(cls, size: int) -> TrainTransform:
        """No chance at all: the whole picture, centred, its longer side scaled to `size`."""
        return cls(size, (1.0, 1.0), flip=0, brightness=0, contrast=0, saturation=0, lighting=0)

    def __call__(self, record: ImageRecord, image: NDArray[np.uint8], rng: np.random.Generator) -> TrainSample:
        """Makes one sample.

        Args:
            record: What is known about the picture.
            image: uint8 [h, w, 3], RGB; the record's size, or a smaller copy of it.
            rng: The only source of chance.
        """
        matrix = self.draw_matrix(record.width, record.height, rng)
        warped, placed = self.render(record, image, matrix, (0, 0, self.size, self.size), rng)
        return self.finish(warped, placed, record.known_classes, record.image_id, matrix)

    def render(
        self,
        record: ImageRecord,
        image: NDArray[np.uint8],
        matrix: NDArray[np.float64],
        frame: Window,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], list[PlacedObject]]:
        """The part of a sample that lies in `frame`: its pixels, with changed colours, and its objects.

        Args:
            record: What is known about the picture.
            image: As above.
            matrix: float64 [2, 3], `image_to_input`.
            frame: Part of the sample; its sides are multiples of 4.
            rng: For the colours.
        """
        pixels = matrix.copy()
        pixels[:, :2] *= (record.width / image.shape[1], record.height / image.shape[0])
        pixels[:, 2] -= frame[:2]
        size = (frame[2] - frame[0], frame[3] - frame[1])
        warped = cv2.warpAffine(
            image, pixel_index_matrix(pixels), size, flags=cv2.INTER_LINEAR, borderValue=self.border
        )
        result = np.asarray(warped, dtype=np.uint8)
        outline = rectangle(0, 0, record.width, record.height) @ matrix[:, :2].T + matrix[:, 2] - frame[:2]
        self.change_colours(result, outline, rng)
        placed = [place(annotation, matrix, frame) for annotation in record.annotations]
        return result, [item for item in placed if item is not None]

    def finish(
        self,
        image: NDArray[np.uint8],
        placed: Sequence[PlacedObject],
        known_classes: NDArray[np.bool_],
        image_id: int,
        matrix: NDArray[np.float64],
    ) -> TrainSample:
        """Sorts the objects into those that teach and those that are ignored."""
        kept: list[PlacedObject] = []
        ignored: list[PlacedObject] = []
        for item in placed:
            side = math.sqrt((item.box[2] - item.box[0]) * (item.box[3] - item.box[1]))
            unclear = item.ignore or side < self.min_side or item.visible < self.min_visible
            (ignored if unclear else kept).append(item)
        cells = self.size // STRIDE
        return TrainSample(
            image=np.ascontiguousarray(image),
            boxes=np.array([item.box for item in kept], dtype=np.float32).reshape(-1, 4),
            labels=np.array([item.label for item in kept], dtype=np.int64),
            masks=stack(kept, cells),
            ignore=stack(ignored, cells),
            ignore_labels=np.array([item.label for item in ignored], dtype=np.int64),
            known_classes=known_classes,
            image_id=image_id,
            image_to_input=matrix,
        )

    def draw_matrix(self, width: int, height: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random `image_to_input`, float64 [2, 3]."""
        crop = max(width, height) * rng.uniform(*self.scale)
        stretch = math.sqrt(self.aspect) ** rng.uniform(-1, 1)
        crop_w, crop_h = crop * stretch, crop / stretch
        # The crop lies inside the picture along an axis where it is smaller, and around it where it is larger.
        left = (width - crop_w) * (0.5 if self.is_plain else rng.uniform())
        top = (height - crop_h) * (0.5 if self.is_plain else rng.uniform())
        a, d = self.size / crop_w, self.size / crop_h
        matrix = np.array([[a, 0, -a * left], [0, d, -d * top]], dtype=np.float64)
        if self.rotation:
            angle = math.radians(rng.uniform(-self.rotation, self.rotation))
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            middle = np.array([self.size / 2, self.size / 2])
            matrix[:, 2] = turn @ (matrix[:, 2] - middle) + middle
            matrix[:, :2] = turn @ matrix[:, :2]
        if rng.uniform() < self.flip:
            matrix[0] = -matrix[0]
            matrix[0, 2] += self.size
        return matrix

    @property
    def is_plain(self) -> bool:
        """Whether the crop is not drawn at all, but centred on the picture."""
        return self.scale == (1.0, 1.0)

    def change_colours(self, image: NDArray[np.uint8], outline: NDArray[np.float64], rng: np.random.Generator) -> None:
        """Brightness, contrast and saturation in random order, then lighting, in place; the border keeps its colour.

        All of them are linear in RGB, so they are joined into one 3x4 matrix and rounded and clamped only once.

        Args:
            image: uint8 [h, w, 3], RGB.
            outline: float64 [4, 2], the corners of the picture in it.
            rng: The source of chance.
        """
        gains = rng.uniform(-1, 1, 3) * (self.brightness, self.contrast, self.saturation) + 1
        order = rng.permutation(3)
        shift = LIGHTING_VECTORS @ (LIGHTING_VALUES * rng.normal(0, 1, 3) * self.lighting) * 255
        if not (self.brightness or self.contrast or self.saturation or self.lighting):
            return
        limit = image.shape[1::-1]
        x0, y0 = np.floor(outline.min(axis=0)).clip(0, limit).astype(int)
        x1, y1 = np.ceil(outline.max(axis=0)).clip(0, limit).astype(int)
        picture = image[y0:y1, x0:x1]
        if not picture.size:
            return
        mean = float(GREY @ cv2.mean(picture)[:3])
        colours = np.eye(3, 4)
        for kind in order:
            gain = gains[kind]
            if kind == 2:
                colours = (gain * np.eye(3) + (1 - gain) * GREY[None, :]) @ colours
                continue
            colours *= gain
            if kind == 1:
                colours[:, 3] += (1 - gain) * mean
            else:
                mean *= gain
        colours[:, 3] += shift
        picture[...] = cv2.transform(picture, colours)
        if self.rotation:
            outside = fill_rings([outline], (0, 0, *limit)) == 0
            image[outside] = self.border
