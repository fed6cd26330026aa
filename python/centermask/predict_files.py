"""`centermask predict`: files, folders, globs and videos in; drawn pictures, videos and labels out."""

from __future__ import annotations

import contextlib
import glob
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from centermask import __version__
from centermask.files import make_room, temporary_path, write_atomically, write_image
from centermask.instances import Instances
from centermask.metadata import ModelInfo
from centermask.predictor import Predictor
from centermask.preprocess import load_image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
_WRITABLE = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

_FAILURES = (ValueError, OSError, RuntimeError, MemoryError, cv2.error)
"""What one picture or video can bring about; the others are still to be done."""


class VideoError(ValueError):
    """A video cannot be read. The message names the file and the cause."""


def expand_inputs(inputs: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Files of the inputs, in order and each once: files themselves, folders (their pictures and videos), globs.

    Returns:
        The files, and one message for each input that gives none.
    """
    files: dict[Path, None] = {}
    errors = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            try:
                found = sorted(entry for entry in path.iterdir() if _is_media(entry) and entry.is_file())
                problem = "no picture or video in this folder"
            except OSError as error:
                found, problem = [], f"this folder cannot be read: {error.strerror}"
        elif path.exists():
            found, problem = [path], ""
        elif glob.has_magic(text):
            found = sorted(Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file())
            problem = "no file matches"
        else:
            found, problem = [], "no such file or folder"
        if not found:
            errors.append(f"{text}: {problem}")
        files.update(dict.fromkeys(found))
    return list(files), errors


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith(".")


class CocoSink:
    """Collects results and writes one COCO file: images, categories, and annotations with `score`.

    Args:
        path: The file.
        info: Of the model.
        polygons: Masks as polygons, the form that COCO documents for single objects and the only one that every
            labelling tool can edit. Holes are filled; without it masks are exact run lengths.
    """

    def __init__(self, path: Path, info: ModelInfo, *, polygons: bool = False) -> None:
        self.path = path
        self._polygons = polygons
        make_room(path)
        self._kept = 0, 0
        self._document: dict[str, Any] = {
            "info": {"description": f"predicted by centermask {__version__} with {info.name}"},
            "licenses": [],
            "images": [],
            "categories": [
                {"id": id_, "name": name} for id_, name in zip(info.category_ids, info.class_names, strict=True)
            ],
            "annotations": [],
        }

    def add(self, name: str, result: Instances, frame: int | None = None) -> None:
        """Adds the instances of one picture, or of one frame of a video (then named `name#000012`)."""
        name = name if frame is None else f"{name}#{frame:06d}"
        images, annotations = self._document["images"], self._document["annotations"]
        height, width = result.image_size
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        if result.masks is None:
            areas = (result.boxes[:, 2:] - result.boxes[:, :2]).prod(axis=1).tolist()
        else:
            areas = result.masks.areas.tolist()
        for i, (annotation, area) in enumerate(zip(result.to_coco(len(images)), areas, strict=True)):
            if self._polygons:
                annotation["segmentation"] = _outer_rings(result, i)
            annotations.append({"id": len(annotations) + 1, **annotation, "area": area, "iscrowd": 0})

    def settle(self, done: bool) -> None:
        """Ends a picture or video: keeps what was added for it, or takes it back if it failed."""
        images, annotations = self._document["images"], self._document["annotations"]
        if not done:
            del images[self._kept[0] :], annotations[self._kept[1] :]
        self._kept = len(images), len(annotations)

    def close(self) -> list[Path]:
        """Writes the file; returns what was written."""
        write_atomically(self.path, json.dumps(self._document).encode())
        return [self.path]


class YoloSink:
    """Writes YOLO-seg labels: `labels/<stem>.txt`, a line for each instance (`class x y x y ...`, fractions 0..1).

    The stem is that of the picture, since YOLO finds labels by it; a frame of a video is `<stem>_000012`, and a second
    picture of the same stem in one run `<stem>_2`.
    The format has one ring for each line: of a mask in several parts the largest is written, holes are not.
    """

    def __init__(self, folder: Path, info: ModelInfo) -> None:
        self.folder = folder
        self._info = info
        self._taken: set[Path] = set()
        self._pending: dict[Path, bytes] = {}
        (folder / "labels").mkdir(parents=True, exist_ok=True)

    def add(self, name: str, result: Instances, frame: int | None = None) -> None:
        """Adds the labels of one picture, or of one frame of a video."""
        height, width = result.image_size
        lines = []
        for i, label in enumerate(result.labels.tolist()):
            ring = _largest_ring(result, i)
            if ring is not None:
                numbers = " ".join(f"{value:.6f}" for value in (ring / (width, height)).clip(0, 1).ravel())
                lines.append(f"{label} {numbers}\n")
        stem = Path(name).stem if frame is None else f"{Path(name).stem}_{frame:06d}"
        path = _free_path(self.folder / "labels" / f"{stem}.txt", self._taken)
        self._pending[path] = "".join(lines).encode()

    def settle(self, done: bool) -> None:
        """Ends a picture or video: writes what was added for it, or drops it if it failed."""
        pending, self._pending = self._pending, {}
        if done:
            for path, text in pending.items():
                write_atomically(path, text)

    def close(self) -> list[Path]:
        """Writes `data.yaml` with the class names; returns what was written."""
        names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(self._info.class_names))
        write_atomically(self.folder / "data.yaml", f"path: .\nnames:\n{names}".encode())
        return [self.folder / "labels", self.folder / "data.yaml"]


def _outer_rings(result: Instances, i: int) -> list[list[float]]:
    """The outlines of a mask without its holes, flat; of an instance without mask, its box."""
    if result.masks is None:
        x0, y0, x1, y1 = result.boxes[i].tolist()
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    # Outer rings run clockwise as seen: their signed area is positive.
    rings = result.masks[i].polygons()[0]
    outer = [ring for ring in rings if cv2.contourArea(np.asarray(ring, np.float32), oriented=True) > 0]
    return [np.asarray(ring, np.float64).ravel().tolist() for ring in outer]


def _largest_ring(result: Instances, i: int) -> NDArray[Any] | None:
    if result.masks is None:
        x0, y0, x1, y1 = result.boxes[i].tolist()
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    rings = result.masks[i].polygons()[0]
    return max(rings, key=lambda ring: abs(cv2.contourArea(np.asarray(ring, np.float32))), default=None)


@dataclass
class Tally:
    """What happened so far."""

    pictures: int = 0
    instances: int = 0
    failed: int = 0
    steps: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def add(self, predictor: Predictor, result: Instances) -> None:
        """Counts one picture or frame."""
        timing = predictor.timing
        self.pictures += 1
        self.instances += len(result)
        self.steps += (timing.preprocess, timing.network, timing.masks)


def predict_files(
    predictor: Predictor,
    files: list[Path],
    out: Path,
    sinks: list[CocoSink | YoloSink],
    *,
    names: list[str] | None = None,
) -> Tally:
    """Predicts on each file, writes the drawn one to `out`, prints a line for each; a bad file is named and skipped.

    Args:
        predictor: The model.
        files: Pictures and videos.
        out: Folder for the drawn files; made if absent.
        sinks: Take the results as labels.
        names: What to call the files in messages and labels; their paths if None.
    """
    out.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    taken = {file.resolve() for file in files}
    start = perf_counter()
    for number, (file, name) in enumerate(zip(files, names or [str(file) for file in files], strict=True), 1):
        prefix = f"[{number}/{len(files)}] " if len(files) > 1 else ""
        try:
            if file.suffix.lower() in VIDEO_SUFFIXES:
                target = _free_path(out / f"{file.stem}.mp4", taken)
                line = _predict_video(predictor, file, target, name, sinks, tally)
            else:
                target = _free_path(out / (file.stem + _output_suffix(file)), taken)
                line = _predict_picture(predictor, file, target, name, sinks, tally)
            for sink in sinks:
                sink.settle(done=True)
        except _FAILURES as error:
            for sink in sinks:
                sink.settle(done=False)
            tally.failed += 1
            print(f"{prefix}error: {_explained(error, name)}", file=sys.stderr, flush=True)
            continue
        remaining = (perf_counter() - start) / number * (len(files) - number)
        eta = f", {remaining:.0f} s left" if remaining > 10 else ""
        print(f"{prefix}{name}: {line}{eta}", flush=True)
    return tally


def _explained(error: BaseException, name: str) -> str:
    if isinstance(error, (ValueError, OSError)):
        return str(error)  # these name the file themselves
    if isinstance(error, MemoryError):
        return f"{name}: not enough memory: {error}"
    return f"{name}: {error}"


def _output_suffix(file: Path) -> str:
    return file.suffix if file.suffix.lower() in _WRITABLE else ".png"


def _free_path(path: Path, taken: set[Path]) -> Path:
    """`path`, or a numbered one beside it if an input or an earlier output of this run has that name."""
    candidate, number = path, 1
    while candidate.resolve() in taken:
        number += 1
        candidate = path.with_stem(f"{path.stem}_{number}")
    taken.add(candidate.resolve())
    return candidate


def _predict_picture(
    predictor: Predictor, file: Path, target: Path, name: str, sinks: list[CocoSink | YoloSink], tally: Tally
) -> str:
    image = load_image(file)
    result = predictor(image)
    write_image(target, result.draw(image))
    for sink in sinks:
        sink.add(name, result)
    tally.add(predictor, result)
    return f"{describe(result)} -> {target} ({predictor.timing.total * 1e3:.0f} ms)"


def describe(result: Instances) -> str:
    """Such as `2 person (0.97, 0.88), 1 dog (0.54)`."""
    if not len(result):
        return "nothing found"
    parts = []
    for name, count in Counter(result.names).most_common():
        scores = [f"{score:.2f}" for score, other in zip(result.scores, result.names, strict=True) if other == name]
        parts.append(f"{count} {name} ({', '.join(scores[:5])}{', ...' if count > 5 else ''})")
    return ", ".join(parts)


def _predict_video(
    predictor: Predictor, file: Path, target: Path, name: str, sinks: list[CocoSink | YoloSink], tally: Tally
) -> str:
    frames = instances = 0
    seconds = 0.0
    with _video_writer(target) as write:
        for image, rate, expected in read_video(file):
            result = predictor(image)
            write(result.draw(image), rate)
            for sink in sinks:
                sink.add(name, result, frames)
            tally.add(predictor, result)
            frames, instances, seconds = frames + 1, instances + len(result), seconds + predictor.timing.total
            if sys.stderr.isatty():
                print(f"\r{name}: frame {frames} of {expected or '?'}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return f"{frames} frames, {instances} instances -> {target} ({1e3 * seconds / frames:.0f} ms a frame)"


def read_video(file: Path) -> Iterator[tuple[NDArray[np.uint8], float, int]]:
    """Frames (BGR, upright), with the frames per second and the number of frames that the file promises (0: unknown).

    Raises:
        VideoError: The file is missing or empty, cannot be opened, or holds no frame.
    """
    if not file.is_file():
        raise VideoError(f"{file}: no such file")
    if file.stat().st_size == 0:
        raise VideoError(f"{file}: the file is empty (0 bytes)")
    capture = cv2.VideoCapture(str(file))
    try:
        if not capture.isOpened():
            raise VideoError(f"{file}: not a video that OpenCV can open (damaged, truncated, or an unknown codec)")
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else 25.0
        expected = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        count = 0
        while True:
            ok, frame = capture.read()
            if not ok:
                break
            count += 1
            yield np.asarray(frame, np.uint8), rate, expected
        if not count:
            raise VideoError(f"{file}: no frame of this video can be decoded")
        if count < 0.9 * expected:  # the promised number is an estimate, so a few missing mean nothing
            raise VideoError(f"{file}: damaged or truncated: {count} of {expected} frames could be decoded")
    finally:
        capture.release()


@contextlib.contextmanager
def _video_writer(target: Path) -> Iterator[Any]:
    """Gives a function (frame, frames per second) that appends to an mp4, which appears when all went well."""
    temporary = temporary_path(target)
    writer: list[cv2.VideoWriter] = []

    def write(frame: NDArray[np.uint8], rate: float) -> None:
        if not writer:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            writer.append(cv2.VideoWriter(str(temporary), codec, rate, (frame.shape[1], frame.shape[0])))
            if not writer[0].isOpened():
                raise OSError(f"{target}: OpenCV cannot write an mp4 of {frame.shape[1]}x{frame.shape[0]} pixels here")
        writer[0].write(frame)

    try:
        yield write
        for opened in writer:
            opened.release()
        temporary.replace(target)
    finally:
        for opened in writer:
            opened.release()
        temporary.unlink(missing_ok=True)
