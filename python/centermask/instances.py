"""What a prediction gives back: boxes, scores, labels and masks of one picture, checked and immutable."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from centermask import ops
from centermask.draw import draw_instances
from centermask.files import write_image
from centermask.ops import Rle
from centermask.preprocess import load_image

if TYPE_CHECKING:
    import supervision
    from PIL.Image import Image as PilImage

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | PilImage"
Index: TypeAlias = "int | slice | Sequence[int] | Sequence[bool] | NDArray[Any]"


class Masks:
    """The masks of n instances, kept as run lengths; other forms are made when asked for, once.

    Args:
        rle: One mask for each instance; `counts` may be str. Each `size` must equal `image_size`.
        image_size: Height and width of the picture.

    Raises:
        ValueError: An entry is no RLE, or its size differs.
    """

    __slots__ = ("_bitmaps", "_polygons", "_rle", "image_size")

    def __init__(self, rle: Sequence[Any], image_size: tuple[int, int]) -> None:
        self.image_size = _checked_size(image_size)
        self._rle: tuple[Rle, ...] = tuple(_checked_rle(mask, i, self.image_size) for i, mask in enumerate(rle))
        self._bitmaps: NDArray[np.bool_] | None = None
        self._polygons: list[list[NDArray[Any]]] | None = None

    @classmethod
    def from_bitmaps(cls, bitmaps: NDArray[Any]) -> Masks:
        """From bool or uint8 `[n, H, W]`."""
        if bitmaps.ndim != 3:
            raise ValueError(f"bitmaps must be [n, H, W], got {list(bitmaps.shape)}")
        return cls(ops.rle_encode(bitmaps) if len(bitmaps) else [], (bitmaps.shape[1], bitmaps.shape[2]))

    @property
    def rle(self) -> list[Rle]:
        """COCO run lengths, byte-compatible with pycocotools."""
        return list(self._rle)

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each mask, int64 `[n]`."""
        return np.asarray(ops.rle_area(self.rle), np.int64).reshape(-1) if self._rle else np.zeros(0, np.int64)

    def bitmaps(self) -> NDArray[np.bool_]:
        """Bool `[n, H, W]`, read-only. Made at the first call and kept: n * H * W bytes."""
        if self._bitmaps is None:
            if self._rle:
                bitmaps = np.asarray(ops.rle_decode(self.rle)).view(np.bool_)
            else:
                bitmaps = np.zeros((0, *self.image_size), np.bool_)
            bitmaps.setflags(write=False)
            self._bitmaps = bitmaps
        return self._bitmaps

    def polygons(self) -> list[list[NDArray[Any]]]:
        """For each instance its rings, `[points, 2]` (x, y) in image pixels; holes are rings of their own."""
        if self._polygons is None:
            self._polygons = [ops.rle_to_polygons(mask) for mask in self._rle]
        return self._polygons

    def __len__(self) -> int:
        return len(self._rle)

    def __getitem__(self, index: Index) -> Masks:
        """Masks of the chosen instances: an int, a slice, indices, or a bool array of length n."""
        return Masks([self._rle[i] for i in _chosen(index, len(self), "masks")], self.image_size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self.image_size == other.image_size and self._rle == other._rle

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.image_size[0]}x{self.image_size[1]} pixels)"

    def __getstate__(self) -> dict[str, Any]:  # caches are not worth copying or sending
        return {"rle": self._rle, "image_size": self.image_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["rle"], state["image_size"])  # type: ignore[misc]


class Instances:
    """Instances found in one picture, best score first. Immutable: the arrays are read-only.

    Args:
        boxes: float32 `[n, 4]`, xyxy in image pixels (continuous; a pixel's centre is at half-integers).
        scores: float32 `[n]`, 0..1.
        labels: int64 `[n]`, indices into `class_names`.
        image_size: Height and width of the picture.
        class_names: Names of all classes that the model knows.
        category_ids: The data set's own id of each class; 1, 2, ... if not given.
        masks: `Masks`, a sequence of RLE dicts, or None for boxes alone.
        source: The picture, or the path of its file; what `draw` and `save` take when given none.

    Raises:
        ValueError: Shapes, lengths or values do not fit; the message says what was expected and given.
    """

    __slots__ = ("boxes", "category_ids", "class_names", "image_size", "labels", "masks", "scores", "source")

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_size: tuple[int, int]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: Masks | None
    source: ImageInput | None

    def __init__(
        self,
        boxes: ArrayLike,
        scores: ArrayLike,
        labels: ArrayLike,
        *,
        image_size: tuple[int, int],
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        masks: Masks | Sequence[Any] | None = None,
        source: ImageInput | None = None,
    ) -> None:
        size = _checked_size(image_size)
        box_array = _read_only(boxes, np.float32)
        if box_array.size == 0:
            box_array = box_array.reshape(-1, 4) if box_array.ndim == 1 else box_array
        if box_array.ndim != 2 or box_array.shape[1] != 4:
            raise ValueError(f"boxes must be [n, 4], got {list(box_array.shape)}")
        n = len(box_array)
        score_array, label_array = _read_only(scores, np.float32), _labels(labels)
        for name, array in (("scores", score_array), ("labels", label_array)):
            if array.shape != (n,):
                raise ValueError(f"{name} must be [{n}] (as many as boxes), got {list(array.shape)}")
        names = tuple(class_names)
        if n and not (label_array.min() >= 0 and label_array.max() < len(names)):
            raise ValueError(
                f"labels must be in 0..{len(names) - 1} (class_names has {len(names)}), "
                f"got {label_array.min()}..{label_array.max()}"
            )
        ids = tuple(range(1, len(names) + 1)) if category_ids is None else tuple(int(value) for value in category_ids)
        if len(ids) != len(names):
            raise ValueError(f"category_ids must have one id for each of the {len(names)} classes, got {len(ids)}")
        if masks is not None and not isinstance(masks, Masks):
            masks = Masks(masks, size)
        if masks is not None and (len(masks) != n or masks.image_size != size):
            raise ValueError(
                f"masks must be {n} of size {list(size)} (as boxes and image_size), "
                f"got {len(masks)} of size {list(masks.image_size)}"
            )
        values = (box_array, ids, names, size, label_array, masks, score_array, source)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def empty(cls, image_size: tuple[int, int], class_names: Sequence[str] = (), **kwargs: Any) -> Instances:
        """A picture in which nothing was found."""
        return cls(np.zeros((0, 4)), [], [], image_size=image_size, class_names=class_names, **kwargs)

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.class_names[label] for label in self.labels]

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Instances]:
        """One `Instances` of length 1 for each instance."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Index) -> Instances:
        """The chosen instances, in the order asked for: an int, a slice, indices, or a bool array of length n.

        Examples: `result[0]`, `result[:5]`, `result[result.scores > 0.5]`, `result[result.labels == 2]`.
        """
        chosen = _chosen(index, len(self), "instances")
        return Instances(
            self.boxes[chosen],
            self.scores[chosen],
            self.labels[chosen],
            image_size=self.image_size,
            class_names=self.class_names,
            category_ids=self.category_ids,
            masks=None if self.masks is None else self.masks[chosen],
            source=self.source,
        )

    def draw(self, image: ImageInput | None = None, **style: Any) -> NDArray[np.uint8]:
        """The picture with masks, boxes and labels on it, uint8 BGR `[H, W, 3]`; the given picture stays as it is.

        Args:
            image: Path, BGR array or PIL image of `image_size`; None takes the one that was predicted on
                (read again from its file if it came from one).
            **style: See `centermask.draw.draw_instances`.

        Raises:
            ValueError: There is no picture, or its size differs.
        """
        image = self.source if image is None else image
        if image is None:
            raise ValueError("draw: this result keeps no picture; give one: result.draw(image)")
        return draw_instances(load_image(image), self, **style)

    def save(self, path: str | os.PathLike[str], image: ImageInput | None = None, **style: Any) -> None:
        """Draws and writes to a file (.jpg, .png, ...), complete or not at all. Arguments as in `draw`."""
        write_image(path, self.draw(image, **style))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results, ready for `json.dump`.

        Each has `image_id`, `category_id`, `bbox` (x, y, width, height), `score`, and with masks `segmentation` (RLE,
        counts as str).
        """
        results: list[dict[str, Any]] = []
        for i, (x0, y0, x1, y1) in enumerate(self.boxes.tolist()):
            result: dict[str, Any] = {
                "image_id": int(image_id),
                "category_id": self.category_ids[self.labels[i]],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(self.scores[i]),
            }
            if self.masks is not None:
                mask = self.masks._rle[i]
                result["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode("ascii")}
            results.append(result)
        return results

    def to_supervision(self) -> supervision.Detections:
        """As `supervision.Detections` (boxes, bitmaps, scores, class ids, and `class_name` in its data).

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError:
            raise ImportError("to_supervision needs the package supervision: pip install 'centermask[viz]'") from None
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            mask=None if self.masks is None else self.masks.bitmaps().copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Instances is immutable: cannot set {name!r}; make a new one, or choose with result[...]")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Instances is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        """Same instances of the same classes; where the picture came from does not matter."""
        return isinstance(other, Instances) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) if name in ("boxes", "scores", "labels")
            else getattr(self, name) == getattr(other, name)
            for name in self.__slots__
            if name != "source"
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, tuple(getattr(self, name) for name in self.__slots__)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {score:.2f}" for name, score in zip(self.names[:8], self.scores[:8], strict=True))
        more = f", and {len(self) - 8} more" if len(self) > 8 else ""
        height, width = self.image_size
        kind = ", boxes only" if self.masks is None else ""
        return f"Instances({len(self)} in {width}x{height} pixels{kind}{': ' if found else ''}{found}{more})"


def _rebuild(*values: Any) -> Instances:
    fields = dict(zip(Instances.__slots__, values, strict=True))
    return Instances(fields.pop("boxes"), fields.pop("scores"), fields.pop("labels"), **fields)


def _read_only(values: ArrayLike, dtype: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values, dtype).view()
    array.setflags(write=False)
    return array


def _labels(values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {array.dtype}")
    return _read_only(array, np.int64)


def _checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size must be (height, width), both at least 1; got {tuple(image_size)}")
    return int(image_size[0]), int(image_size[1])


def _checked_rle(mask: Any, index: int, image_size: tuple[int, int]) -> Rle:
    if not isinstance(mask, dict) or not {"size", "counts"} <= set(mask):
        raise ValueError(f"masks[{index}] must be an RLE dict with 'size' and 'counts', got {type(mask).__name__}")
    if tuple(mask["size"]) != image_size:
        raise ValueError(f"masks[{index}] must have size {list(image_size)} (image_size), got {list(mask['size'])}")
    counts = mask["counts"]
    if isinstance(counts, str):
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise ValueError(f"masks[{index}]: counts must be compressed (bytes or str), got {type(counts).__name__}")
    return {"size": list(image_size), "counts": counts}


def _chosen(index: Any, n: int, what: str) -> NDArray[np.int64]:
    """Any index as int64 positions."""
    if isinstance(index, (int, np.integer)) and not isinstance(index, (bool, np.bool_)):
        if not -n <= index < n:
            raise IndexError(f"index {index} is out of range for {n} {what}")
        return np.array([index % n], np.int64)
    if isinstance(index, slice):
        return np.arange(n, dtype=np.int64)[index]
    array = np.asarray(index)
    if array.dtype == np.bool_:
        if array.shape != (n,):
            raise IndexError(f"bool index must be [{n}] (as many as {what}), got {list(array.shape)}")
        return np.flatnonzero(array).astype(np.int64)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise IndexError(
            f"index must be an int, a slice, a list of ints or a bool array, got {array.dtype} {list(array.shape)}"
        )
    if array.min() < -n or array.max() >= n:
        raise IndexError(f"index {int(array.max())} is out of range for {n} {what}")
    return np.asarray(array, np.int64) % max(n, 1)
