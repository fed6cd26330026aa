"""Pictures in, instances out: the one way of prediction, whatever runs the network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from centermask import ops
from centermask.instances import ImageInput, Instances
from centermask.metadata import ModelInfo
from centermask.preprocess import load_image, prepare
from centermask.session import Device, Network, NetworkOutput, OnnxNetwork

EMBEDDED_MODELS = ("default", "nuclei")
"""Names that `Predictor` and the command line take in place of a path."""


@dataclass(frozen=True)
class Timing:
    """Seconds that the last picture took, by step."""

    preprocess: float
    network: float
    masks: float

    @property
    def total(self) -> float:
        """From the array in memory to finished instances."""
        return self.preprocess + self.network + self.masks


def model_path(model: str | os.PathLike[str]) -> Path:
    """The file of a model given by path or by the name of an embedded one.

    Raises:
        FileNotFoundError: There is neither such a file nor such a name.
    """
    if isinstance(model, str) and model in EMBEDDED_MODELS:
        path = Path(str(resources.files("centermask") / "models" / f"{model}.onnx"))
        if not path.is_file():
            raise FileNotFoundError(
                f"the embedded model {model!r} is not in this installation, which has "
                f"{', '.join(embedded_models()) or 'none'} ({path})"
            )
        return path
    if not Path(model).is_file():
        hint = "" if Path(model).suffix else f"; embedded models are {', '.join(EMBEDDED_MODELS)}"
        raise FileNotFoundError(f"{os.fspath(model)}: no such model file{hint}")
    return Path(model)


def embedded_models() -> list[str]:
    """Names of the models that this installation holds."""
    folder = resources.files("centermask") / "models"
    return [name for name in EMBEDDED_MODELS if (folder / f"{name}.onnx").is_file()]


class Predictor:
    """Finds instances in pictures.

    Args:
        model: Path of an `.onnx` file made by `centermask export`, the name of an embedded model, or any `Network`.
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads; None takes all cores.
        score_threshold: Least score of what is returned, 0..1; None takes the model's own. The graph itself has already
            dropped what scores below 0.05.
        max_instances: Most instances for each picture, best first; None keeps all (the model's top_k bounds them).
        max_overlap: Of two instances of a class whose boxes overlap more than this (IoU, 0..1) the better one is kept,
            since a large object can have several peaks. 1 keeps both; None takes the model's own.
        class_agnostic: `max_overlap` holds between classes too, so that an object has one label only; None takes the
            model's own.
        clip_boxes: Clip boxes to the picture, and leave out those wholly outside. Published detectors do not.

    Raises:
        FileNotFoundError: There is no such model.
        ModelFileError: The file is not a centermask model, or this runtime cannot run it.
        ImportError: onnxruntime is not installed.
        ValueError: A setting is out of range.

    Example:
        >>> predictor = Predictor()
        >>> result = predictor("photo.jpg")
        >>> result.names, result.boxes, result.masks.rle
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Network = "default",
        *,
        device: Device = "auto",
        threads: int | None = None,
        score_threshold: float | None = None,
        max_instances: int | None = None,
        max_overlap: float | None = None,
        class_agnostic: bool | None = None,
        clip_boxes: bool = True,
    ) -> None:
        if max_overlap is not None and not 0 <= max_overlap <= 1:
            raise ValueError(f"max_overlap must be in 0..1, got {max_overlap}")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold must be in 0..1, got {score_threshold}")
        if max_instances is not None and max_instances < 1:
            raise ValueError(f"max_instances must be at least 1, got {max_instances}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if isinstance(model, (str, os.PathLike)):
            self.network: Network = OnnxNetwork(model_path(model), device=device, threads=threads)
        else:
            self.network = model
        self.score_threshold = self.info.score_threshold if score_threshold is None else score_threshold
        self.max_overlap = self.info.max_overlap if max_overlap is None else max_overlap
        self.class_agnostic = self.info.class_agnostic if class_agnostic is None else class_agnostic
        self.max_instances = max_instances
        self.clip_boxes = clip_boxes
        self._threads = threads
        self._timing = Timing(0.0, 0.0, 0.0)

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself: classes, input size, training data, ..."""
        return self.network.info

    @property
    def timing(self) -> Timing:
        """How long the last picture took."""
        return self._timing

    @overload
    def __call__(self, image: list[ImageInput], *, color: Literal["bgr", "rgb"] = "bgr") -> list[Instances]: ...

    @overload
    def __call__(self, image: ImageInput, *, color: Literal["bgr", "rgb"] = "bgr") -> Instances: ...

    def __call__(
        self, image: ImageInput | list[ImageInput], *, color: Literal["bgr", "rgb"] = "bgr"
    ) -> Instances | list[Instances]:
        """Predicts on a picture, or on each of a list.

        Args:
            image: Path, bytes of a file, uint8 array `[H, W, 3]` (also grey, with alpha, or uint16), PIL image, or a
                list of these; see `centermask.preprocess.load_image`.
            color: Channel order of arrays: `bgr` as OpenCV has it, or `rgb`.

        Returns:
            Instances in pixels of the picture, best first; for a list a list, in its order.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A file is empty, truncated or no picture (the message names it and the cause), or an array has
                a wrong shape.
            TypeError: An array has a wrong dtype, or the argument is of none of these kinds.
        """
        if isinstance(image, list):
            return list(self.stream(image, color=color))
        pixels = load_image(image, color)
        # Of a file the path is kept rather than its pixels: the results of many files stay small.
        return self._predict(pixels, image if isinstance(image, (str, os.PathLike)) else pixels)

    def stream(self, images: Iterable[ImageInput], *, color: Literal["bgr", "rgb"] = "bgr") -> Iterator[Instances]:
        """Predicts one by one as the results are asked for: any number of pictures, or the frames of a video."""
        return (self(image, color=color) for image in images)

    def _predict(self, image: NDArray[np.uint8], source: ImageInput) -> Instances:
        start = perf_counter()
        network_input, image_to_input = prepare(image, self.info.preprocess, threads=self._threads)
        ready = perf_counter()
        output = self.network(network_input[None])
        done = perf_counter()
        result = to_instances(
            output,
            0,
            self.info,
            image_size=(image.shape[0], image.shape[1]),
            image_to_input=image_to_input,
            score_threshold=self.score_threshold,
            max_instances=self.max_instances,
            max_overlap=self.max_overlap,
            class_agnostic=self.class_agnostic,
            clip_boxes=self.clip_boxes,
            source=source,
            threads=self._threads,
        )
        self._timing = Timing(ready - start, done - ready, perf_counter() - done)
        return result


def to_instances(
    output: NetworkOutput,
    row: int,
    info: ModelInfo,
    *,
    image_size: tuple[int, int],
    image_to_input: NDArray[np.float64],
    score_threshold: float = 0.0,
    max_instances: int | None = None,
    max_overlap: float = 1.0,
    class_agnostic: bool = False,
    clip_boxes: bool = True,
    source: ImageInput | None = None,
    threads: int | None = None,
) -> Instances:
    """Instances of one picture of a batch, from what the network gave.

    Args:
        output: Of the network, for N pictures.
        row: Which of the N.
        info: Of the model.
        image_size: Height and width of the original picture.
        image_to_input: float64 `[2, 3]`, axis-aligned: image pixel -> input pixel.
        score_threshold: Least score that is kept.
        max_instances: Most that are kept.
        max_overlap: See `without_duplicates`.
        class_agnostic: Look for duplicates among all classes together.
        clip_boxes: See `Predictor`.
        source: The picture or its path, for drawing later.
        threads: For the masks; None takes all cores.

    Returns:
        In image pixels: boxes, masks at the picture's resolution.
    """
    height, width = image_size
    count = int(output.count[row])
    scores = output.scores[row, :count]
    keep = np.flatnonzero(scores >= score_threshold)
    input_boxes = output.boxes[row, :count]
    boxes = boxes_in_image(input_boxes, image_to_input).astype(np.float32)
    if clip_boxes:
        boxes = boxes.clip(0, [width, height, width, height]).astype(np.float32)
        is_inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        keep = keep[is_inside[keep]]
    groups = output.labels[row, keep] * (not class_agnostic)
    keep = keep[without_duplicates(input_boxes[keep], groups, max_overlap)][:max_instances]
    labels = output.labels[row, keep]
    masks = None
    if info.mask_head != "none" and output.mask_params is not None and output.mask_features is not None:
        masks = ops.assemble_masks(
            output.mask_features[row],
            np.ascontiguousarray(output.mask_params[row, keep]),
            np.ascontiguousarray(input_boxes[keep]),
            head=info.mask_head,
            image_size=image_size,
            image_to_input=image_to_input,
            labels=labels,
            stride=info.stride,
            box_margin=info.box_margin,
            output="rle",
            threads=threads,
        )
    return Instances(
        boxes[keep],
        scores[keep],
        labels,
        image_size=image_size,
        class_names=info.class_names,
        category_ids=info.category_ids,
        masks=masks,
        source=source,
    )


def boxes_in_image(boxes: NDArray[np.float32], image_to_input: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes `[n, 4]` in input pixels as boxes in image pixels, both xyxy; see `to_instances`."""
    scale, shift = image_to_input[[0, 1], [0, 1]], image_to_input[:, 2]
    mapped: NDArray[np.float64] = (boxes.reshape(-1, 2, 2).astype(np.float64) - shift) / scale
    return mapped.reshape(-1, 4)


def without_duplicates(boxes: NDArray[np.float32], labels: NDArray[np.int64], max_overlap: float) -> NDArray[np.int64]:
    """Indices that remain when, of two instances of one class that overlap too much, the later one goes.

    CenterNet counts on one peak for each object. A large object, or a model that has seen little data, gives
    several; all but the best are false alarms.

    Args:
        boxes: `[n, 4]`, xyxy, best first.
        labels: `[n]`.
        max_overlap: Largest box IoU with a kept instance of the same class, 0..1; 1 keeps all.
    """
    if max_overlap >= 1 or len(boxes) < 2:
        return np.arange(len(boxes), dtype=np.int64)
    corners = boxes.astype(np.float64)
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    same = (labels[:, None] == labels[None]) & (common > max_overlap * (areas[:, None] + areas[None] - common))
    kept = np.ones(len(boxes), np.bool_)
    for i in range(1, len(boxes)):
        kept[i] = not (same[i, :i] & kept[:i]).any()
    return np.flatnonzero(kept).astype(np.int64)
