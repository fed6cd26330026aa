"""`centermask predict`: files, folders, globs and videos in; drawn pictures, videos and labels out."""

from __future__ import annotations

import contextlib
import glob
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

from centermask.files import temporary_path, write_image
from centermask.instances import Instances
from centermask.label_files import CocoSink, Frame, YoloSink, free_path
from centermask.metadata import ModelInfo
from centermask.predictor import Predictor
from centermask.preprocess import load_image
from centermask.wording import counted

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
_WRITABLE = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

CLASSES_TOLD = 20

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
                target = free_path(out / f"{file.stem}.mp4", taken)
                line = _predict_video(predictor, file, target, name, sinks, tally)
            else:
                target = free_path(out / (file.stem + _output_suffix(file)), taken)
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


def _predict_picture(
    predictor: Predictor, file: Path, target: Path, name: str, sinks: list[CocoSink | YoloSink], tally: Tally
) -> str:
    image = load_image(file)
    result = predictor(image)
    write_image(target, result.draw(image))
    for sink in sinks:
        sink.add(name, result, file)
    tally.add(predictor, result)
    return f"{describe(result)} -> {target} ({predictor.timing.total * 1e3:.0f} ms)"


def introduction(model: str, info: ModelInfo) -> list[str]:
    """What a model can find: it knows nothing else, and sees its own classes even where there are none."""
    names = ", ".join(info.class_names[:CLASSES_TOLD])
    more = f" and {len(info.class_names) - CLASSES_TOLD} more" if len(info.class_names) > CLASSES_TOLD else ""
    lines = [f"model {model}: finds {names}{more}"]
    return [*lines, f"trained on: {info.training_data}"] if info.training_data else lines


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
                sink.add(name, result, Frame(frames, image))
            tally.add(predictor, result)
            frames, instances, seconds = frames + 1, instances + len(result), seconds + predictor.timing.total
            if sys.stderr.isatty():
                print(f"\r{name}: frame {frames} of {expected or '?'}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    found = f"{counted(frames, 'frame')}, {counted(instances, 'instance')}"
    return f"{found} -> {target} ({1e3 * seconds / frames:.0f} ms a frame)"


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
