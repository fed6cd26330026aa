"""Drawing instances on a picture with OpenCV alone, from 100 pixels to 12 megapixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from centermask.instances import Instances

ColorBy = Literal["auto", "class", "instance"]
Color = tuple[int, int, int]

_FONT = cv2.FONT_HERSHEY_SIMPLEX  # OpenCV 5 renders it with an embedded TrueType font, OpenCV 4 with strokes
_CAP_HEIGHT = 21  # pixels of a capital letter at scale 1
_SHIFT = 4  # fractional bits of the coordinates that OpenCV draws at
_GOLDEN = 0.6180339887498949  # successive multiples, modulo 1, stay far apart: hues for any number of classes


@dataclass(frozen=True)
class _Sizes:
    """All lengths in pixels, proportional to the picture with floors that keep small ones readable."""

    line: int
    cap: int
    pad: int
    scale: float
    stroke: int

    @classmethod
    def of(cls, height: int, width: int, line_width: int | None) -> _Sizes:
        side = math.sqrt(height * width)
        # A strip such as 20000 x 10 has a large area and no room: the short side limits.
        cap = max(7, round(min(0.018 * side, 0.12 * min(height, width))))
        line = line_width if line_width is not None else max(1, round(min(0.0034 * side, 0.02 * min(height, width))))
        return cls(line, cap, max(2, round(0.5 * cap)), cap / _CAP_HEIGHT, max(1, round(cap / 14)))


def class_color(index: int, variant: int = 0) -> Color:
    """A colour (BGR, 0..255) for a class or an instance: the same in every picture, neighbours far apart in hue.

    Args:
        index: Class or instance.
        variant: 0, 1, 2: lighter and darker shades of the same hue, to tell neighbours of one class apart.
    """
    hue = 2 * math.pi * ((0.71 + index * _GOLDEN) % 1)
    return _oklch_to_bgr(0.74 - 0.09 * (variant % 3), 0.16, hue)


def _oklch_to_bgr(lightness: float, chroma: float, hue: float) -> Color:
    """Equal lightness looks equally light in every hue, unlike HSV (Ottosson, "A perceptual color space", 2020)."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    )
    blue, green, red = (_to_srgb_byte(value) for value in linear)
    return blue, green, red


def _to_srgb_byte(value: float) -> int:
    value = min(max(value, 0.0), 1.0)
    return round(255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055))


def draw_instances(
    image: NDArray[np.uint8],
    instances: Instances,
    *,
    masks: bool = True,
    boxes: bool | None = None,
    labels: bool = True,
    color_by: ColorBy = "auto",
    opacity: float = 0.45,
    line_width: int | None = None,
) -> NDArray[np.uint8]:
    """Draws masks (translucent fill and smooth outline), boxes and labels.

    Args:
        image: uint8 BGR `[H, W, 3]`, of the instances' `image_size`; not changed.
        instances: What to draw.
        masks: Draw masks, where there are any.
        boxes: Draw boxes; None draws them for instances without masks only.
        labels: Write name and score. In a crowd, a small instance whose label finds no free place goes without.
        color_by: A hue for each `class` or each `instance`; `auto` goes by class unless there is only one.
        opacity: Of the fill, 0 (outline only) to 1.
        line_width: Pixels; None chooses by the picture's size.

    Returns:
        A new picture, uint8 BGR `[H, W, 3]`.

    Raises:
        ValueError: The picture has another size or type, or an option is out of range.
    """
    height, width = instances.image_size
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"draw: image must be uint8 [{height}, {width}, 3], got {image.dtype} {list(image.shape)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"draw: opacity must be in 0..1, got {opacity}")
    if line_width is not None and line_width < 1:
        raise ValueError(f"draw: line_width must be at least 1, got {line_width}")
    canvas: NDArray[np.uint8] = image.copy()
    anchors: dict[int, tuple[int, int]] = {}  # the top of each drawn mask, where its label points
    sizes = _Sizes.of(height, width, line_width)
    colors = _colors(instances, color_by)
    extents = instances.boxes[:, 2:] - instances.boxes[:, :2]
    back_to_front = np.argsort(-extents.prod(axis=1), kind="stable")  # small ones stay visible on top of large ones
    show_masks = masks and instances.masks is not None
    if show_masks and instances.masks is not None:
        for i in back_to_front:
            rings = [smooth_ring(ring, 1.5 * sizes.line) for ring in instances.masks[int(i)].polygons()[0]]
            _draw_mask(image, canvas, rings, colors[i], opacity, sizes.line)
            if rings:
                points = np.concatenate(rings)
                top_x, top_y = points[points[:, 1].argmin()].tolist()
                anchors[int(i)] = round(top_x), round(top_y)
    for i in back_to_front:
        if boxes or (boxes is None and not show_masks):
            corners = np.rint((instances.boxes[i] - 0.5) * (1 << _SHIFT)).astype(np.int64).tolist()
            cv2.rectangle(canvas, corners[:2], corners[2:], colors[i], sizes.line, cv2.LINE_AA, _SHIFT)
    if labels:
        _draw_labels(canvas, instances, anchors, colors, sizes)
    return canvas


def _colors(instances: Instances, color_by: ColorBy) -> list[Color]:
    if color_by not in ("auto", "class", "instance"):
        raise ValueError(f"draw: color_by must be auto, class or instance; got {color_by!r}")
    if color_by == "instance" or (color_by == "auto" and len(instances.class_names) <= 1):
        return [class_color(i) for i in range(len(instances))]
    seen: dict[int, int] = {}
    colors = []
    for label in instances.labels.tolist():
        colors.append(class_color(label, seen.get(label, 0)))
        seen[label] = seen.get(label, 0) + 1
    return colors


def smooth_ring(ring: NDArray[Any], radius: float) -> NDArray[np.float64]:
    """A pixel outline without its stairs: resampled at one-pixel steps and averaged twice over `radius` pixels.

    Args:
        ring: `[points, 2]` (x, y), closed implicitly.
        radius: Width of the average; never more than an eighth of the ring, so that small ones keep their shape.

    Returns:
        float64 `[points, 2]`.
    """
    closed = np.vstack([ring, ring[:1]]).astype(np.float64)
    steps = np.hypot(*np.diff(closed, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    length = at[-1]
    count = math.ceil(length)
    span = int(min(max(radius, 2.0), length / 8)) | 1
    if count < 8:
        return closed[:-1]
    where = np.linspace(0, length, count, endpoint=False)
    points = np.stack([np.interp(where, at, closed[:, 0]), np.interp(where, at, closed[:, 1])], axis=1)
    for _ in range(2):
        around = np.concatenate([points[-(span // 2) :], points, points[: span // 2]]) if span > 1 else points
        sums = np.cumsum(np.vstack([np.zeros((1, 2)), around]), axis=0)
        points = (sums[span:] - sums[:-span]) / span
    # A thick line costs by the number of its points; a quarter of a pixel is not to be seen.
    thinned = cv2.approxPolyDP(points.astype(np.float32)[:, None], 0.25, closed=True)[:, 0]
    return np.asarray(thinned if len(thinned) > 2 else points, np.float64)


def _draw_mask(
    image: NDArray[np.uint8],
    canvas: NDArray[np.uint8],
    rings: list[NDArray[np.float64]],
    color: Color,
    opacity: float,
    line: int,
) -> None:
    """Works on the crop that the mask touches: cost and memory follow the instance, not the picture.

    The fill tints the picture itself, not what is drawn so far: masks on top of each other do not add up to opaque.
    """
    if not rings:
        return
    height, width = canvas.shape[:2]
    points = np.concatenate(rings)
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - line - 2, 0).tolist()
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + line + 2, (width, height)).tolist()
    if x0 >= x1 or y0 >= y1:
        return
    crop = canvas[y0:y1, x0:x1]
    # OpenCV puts a pixel's centre at whole numbers, we at halves.
    fixed = [np.rint((ring - (x0 + 0.5, y0 + 0.5)) * (1 << _SHIFT)).astype(np.int32) for ring in rings]
    if opacity > 0:
        inside = np.zeros(crop.shape[:2], np.uint8)
        cv2.fillPoly(inside, fixed, 255, cv2.LINE_8, _SHIFT)  # even-odd: rings inside rings are holes
        levels = (1 - opacity) * np.arange(256)[:, None] + opacity * np.array(color)
        tinted = cv2.LUT(image[y0:y1, x0:x1], np.rint(levels).astype(np.uint8)[None])
        crop[...] = cv2.copyTo(tinted, inside, crop)
    cv2.polylines(crop, fixed, True, color, line, cv2.LINE_AA, _SHIFT)


def _draw_labels(
    canvas: NDArray[np.uint8],
    instances: Instances,
    anchors: dict[int, tuple[int, int]],
    colors: list[Color],
    sizes: _Sizes,
) -> None:
    # A crowd of one known class needs no name on each.
    unnamed = len(instances.class_names) == 1 and len(instances) > 8
    taken: list[tuple[int, int, int, int]] = []
    places: list[tuple[int, str, tuple[int, int, int, int]]] = []
    for i in np.argsort(-instances.scores, kind="stable").tolist():
        x0, y0, x1, y1 = (int(value) for value in instances.boxes[i])
        name = "" if unnamed else instances.names[i]
        text, size = _fitting_text(name, float(instances.scores[i]), canvas.shape[1], sizes)
        place, is_free = _place(size, (x0, y0, x1, y1), anchors.get(i), canvas.shape, taken)
        crowded = (x1 - x0) * (y1 - y0) < 4 * size[0] * size[1]
        if is_free or not crowded:
            taken.append(place)
            places.append((i, text, place))
    for i, text, (x0, y0, x1, y1) in reversed(places):  # best score on top
        blue, green, red = colors[i]
        _rounded_box(canvas, (x0, y0, x1, y1), colors[i], max(1, sizes.pad // 2))
        dark_text = 0.299 * red + 0.587 * green + 0.114 * blue > 120
        ink = (24, 24, 24) if dark_text else (255, 255, 255)
        baseline = (x0 + sizes.pad, y1 - sizes.pad)
        cv2.putText(canvas, text, baseline, _FONT, sizes.scale, ink, sizes.stroke, cv2.LINE_AA)


def _fitting_text(name: str, score: float, room: int, sizes: _Sizes) -> tuple[str, tuple[int, int]]:
    """The longest of "name 0.93", "name", its beginning that is no wider than the picture, and the size of its box."""
    options = [f"{name} {score:.2f}".strip(), name, *(name[:length] + "." for length in range(len(name) - 1, 0, -1))]
    for text in options:
        (text_width, _), _ = cv2.getTextSize(text, _FONT, sizes.scale, sizes.stroke)
        size = text_width + 2 * sizes.pad, sizes.cap + 2 * sizes.pad
        if size[0] <= room:
            break
    return text, size


def _place(
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    anchor: tuple[int, int] | None,
    shape: tuple[int, ...],
    taken: list[tuple[int, int, int, int]],
) -> tuple[tuple[int, int, int, int], bool]:
    """Where a label of `size` goes, wholly in the picture, and whether that is free.

    Above the top of the mask (`anchor`), else above, in or below the box.
    """
    width, height = size
    x0, y0, x1, y1 = box
    candidates = [(x0, y0 - height), (x0, y0), (x1 - width, y0 - height), (x0, y1), (x1 - width, y1 - height)]
    if anchor is not None:
        candidates.insert(0, (anchor[0] - width // 2, anchor[1] - height))
    rectangles = []
    for left, top in candidates:
        left = max(0, min(left, shape[1] - width))
        top = max(0, min(top, shape[0] - height))
        rectangles.append((left, top, left + width, top + height))
    for rectangle in rectangles:
        if not any(_overlap(rectangle, other) for other in taken):
            return rectangle, True
    return rectangles[0], False


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _rounded_box(canvas: NDArray[np.uint8], box: tuple[int, int, int, int], color: Color, radius: int) -> None:
    x0, y0, x1, y1 = box[0], box[1], box[2] - 1, box[3] - 1
    cv2.rectangle(canvas, (x0 + radius, y0), (x1 - radius, y1), color, cv2.FILLED)
    cv2.rectangle(canvas, (x0, y0 + radius), (x1, y1 - radius), color, cv2.FILLED)
    for corner in ((x0, y0), (x1, y0), (x0, y1), (x1, y1)):
        centre = (
            corner[0] + (radius if corner[0] == x0 else -radius),
            corner[1] + (radius if corner[1] == y0 else -radius),
        )
        cv2.circle(canvas, centre, radius, color, cv2.FILLED, cv2.LINE_AA)
