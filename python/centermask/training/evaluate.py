"""Average precision and latency of exactly what is deployed: the Predictor's own way, with any network in it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from centermask.coco import IouType, check_results, evaluate_coco, read_results, require_evaluation
from centermask.predictor import Predictor, model_path
from centermask.report.evidence import Evidence
from centermask.session import Device
from centermask.training.coco_reader import CocoFile, read_json
from centermask.training.data import CocoDataset, DataError, load_datasets
from centermask.training.protocol import EvalProtocol, ScaledPredictor
from centermask.wording import counted

if TYPE_CHECKING:
    from centermask.nn.model import CenterMask

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Figures:
    """What an evaluation found; fractions 0..1, None where the data has no object of the kind.

    Attributes:
        values: As `evaluate_coco` gives them: `box_ap`, ..., `mask_ap`, ..., `per_class`, `images`, `max_dets`.
        latency_ms: Median time of a prediction from the array in memory; None for a result file.
        notes: What was left out, in words.
        evidence: What a report is made from.
    """

    values: Mapping[str, Any]
    latency_ms: float | None
    notes: tuple[str, ...] = ()
    evidence: Evidence | None = None

    def to_json(self) -> dict[str, Any]:
        """`values` but for the curves, and `latency_ms`, plain."""
        return {**{k: v for k, v in self.values.items() if k != "curves"}, "latency_ms": self.latency_ms}

    def table(self) -> str:
        """For people: overall figures and a line for each class."""
        kinds = [kind for kind in ("box", "mask", "boundary") if f"{kind}_ap" in self.values]
        columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        lines = [f"{'':<24}" + "".join(f"{column:>10}" for column in columns)]
        for kind in kinds:
            lines.append(f"{kind:<24}" + "".join(_cell(self.values[f"{kind}_{column}"]) for column in columns))
        lines.append("")
        kinds = [kind for kind in kinds if kind != "boundary"]
        headings = "".join(f"{f'{kind} {column}':>10}" for kind in kinds for column in ("ap", "ap50"))
        lines.append(f"{'class':<24}{headings}{'instances':>11}")
        for name, values in self.values["per_class"].items():
            cells = "".join(_cell(values[f"{kind}_{column}"]) for kind in kinds for column in ("ap", "ap50"))
            lines.append(f"{name:<24.24}{cells}{values['instances']:>11}")
        lines.append("")
        latency = "" if self.latency_ms is None else f", {self.latency_ms:.1f} ms each (median)"
        lines.append(f"{counted(self.values['images'], 'picture')}{latency}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.4f}"


def evaluate(
    predictor: Predictor,
    dataset: CocoDataset,
    *,
    protocol: EvalProtocol | None = None,
    progress: bool = False,
    boundary: bool = False,
) -> tuple[Figures, list[str]]:
    """Predicts on every picture of a data set and compares.

    Classes are matched by name: what only the model knows is left out of its results, and in each picture so is what
    that picture's own set does not label.

    Args:
        predictor: Its `score_threshold` should be 0: average precision needs the weak results too.
        dataset: Its classes must all be known to the model.
        protocol: Its rounding is applied here; the rest is the predictor's.
        progress: Show a progress line on stderr.
        boundary: Add boundary AP.

    Returns:
        The figures, and a message for each picture that could not be read (those count as absent).

    Raises:
        ValueError: The data set has a class that the model does not know.
    """
    names = predictor.info.class_names
    unknown = [name for name in dataset.class_names if name not in names]
    if unknown:
        raise ValueError(f"evaluate: the model does not know the classes {unknown}; it knows {list(names)}")
    to_data = np.array([dataset.class_names.index(name) if name in dataset.class_names else -1 for name in names])
    protocol = protocol or EvalProtocol()
    results: list[dict[str, Any]] = []
    seconds: dict[str, list[float]] = {"preprocess": [], "network": [], "masks": []}
    failures, done = [], set()
    for number, record in enumerate(dataset.records):
        try:
            image = dataset.image(number)
        except DataError as error:
            failures.append(str(error))
            continue
        found = predictor(image, color="rgb")
        for step, values in seconds.items():
            values.append(getattr(predictor.timing, step))
        done.add(record.image_id)
        labels = to_data[found.labels]
        known = np.flatnonzero(labels >= 0)
        for row, label in zip(found[known].to_coco(record.image_id), labels[known], strict=True):
            results.append(protocol.rounded({**row, "category_id": dataset.category_ids[label]}))
        if progress and (number % 10 == 9 or number + 1 == len(dataset)):
            print(f"\r{number + 1} of {len(dataset)} pictures", end="", file=sys.stderr, flush=True)
    if progress:
        print(file=sys.stderr)
    kinds: tuple[IouType, ...] = ("bbox",) if predictor.info.mask_head == "none" else ("bbox", "segm")
    if boundary and "segm" in kinds:
        kinds = (*kinds, "boundary")
    totals = np.sum([*seconds.values()], axis=0)
    # A model for crowds gives more than COCO's hundred results a picture, and all of them count.
    max_dets = max(100, predictor.info.top_k)
    evidence = replace(_evidence(dataset, results, kinds, done), seconds=seconds, max_dets=max_dets)
    return Figures(
        _compare(evidence, kinds), 1e3 * float(median(totals)) if len(totals) else None, (), evidence
    ), failures


def _evidence(
    dataset: CocoDataset, results: list[dict[str, Any]], kinds: Sequence[IouType], images: set[int]
) -> Evidence:
    truth = dataset.ground_truth()
    truth["images"] = [row for row in truth["images"] if row["id"] in images]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in images]
    ids = np.array(dataset.category_ids)
    labelled = {record.image_id: set(ids[record.known_classes].tolist()) for record in dataset.records}
    positions = {record.image_id: position for position, record in enumerate(dataset.records)}
    return Evidence(truth, results, labelled, "segm" in kinds, lambda key: dataset.image(positions[key]))


def _compare(evidence: Evidence, kinds: Sequence[IouType]) -> dict[str, Any]:
    return evaluate_coco(
        evidence.truth,
        evidence.results,
        iou_types=kinds,
        known_categories=evidence.known,
        max_dets=evidence.max_dets,
        curves=True,
    )


def evaluate_model(model: CenterMask, dataset: CocoDataset) -> dict[str, Any]:
    """What the training loop calls: the figures of a torch model as plain values (`Figures.to_json`)."""
    from centermask.training.torch_network import TorchNetwork

    figures, _ = evaluate(Predictor(TorchNetwork(model), score_threshold=0.0), dataset)
    return figures.to_json()


def evaluate_file(
    model: str,
    data: Path,
    split: str,
    *,
    device: Device = "auto",
    threads: int | None = None,
    protocol: EvalProtocol | None = None,
) -> tuple[Figures, list[str]]:
    """Evaluates an `.onnx` file (or embedded model), a checkpoint, or a COCO result file on a COCO-style folder.

    Args:
        model: Path or embedded name.
        data: Folder with `<split>.json` and `images/`.
        split: Name of the JSON file.
        device: For models.
        threads: For models; None takes all cores.
        protocol: How to test, for models.

    Returns:
        The figures, and a message for each picture that could not be read (also printed on stderr).

    Raises:
        ImportError: pycocotools is not installed; said before any work is done.
        ValueError: Model and data have no class in common, or a file is not what it should be.
    """
    require_evaluation()
    source = read_json(data, split, make_val=True)
    labelled = list(dict.fromkeys(source.categories.values()))
    notes = [_stand_in(model, source)] if source.note else []
    if Path(model).suffix.lower() == ".json":
        dataset = load_datasets([data], split, make_val=True)
        return _titled(_evaluate_results(Path(model), dataset), model, data, split, notes), []
    protocol = protocol or EvalProtocol()
    predictor = _load(model, device, threads, protocol)
    common = [name for name in labelled if name in predictor.info.class_names]
    if not common:
        raise ValueError(
            f"{model} knows {list(predictor.info.class_names)}, {data} labels {labelled}: no class in common"
        )
    dataset = load_datasets([data], split, classes=common, make_val=True)
    for names, other, who in (
        (labelled, predictor.info.class_names, "data"),
        (predictor.info.class_names, labelled, "model"),
    ):
        left_out = [name for name in names if name not in other]
        if left_out:
            notes.append(f"classes that only the {who} knows are left out: {', '.join(left_out)}")
    figures, unreadable = evaluate(predictor, dataset, protocol=protocol, progress=sys.stderr.isatty(), boundary=True)
    # Reading has already left out what is missing or damaged; what is wrong with the JSON itself bears its name.
    failures = [str(problem) for problem in dataset.problems if not problem.file.endswith(".json")] + unreadable
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        notes.append(f"{counted(len(failures), 'picture')} could not be read and did not count")
    return _titled(figures, model, data, split, notes), failures


def _stand_in(model: str, source: CocoFile) -> str:
    """What is said about pictures of `train` that stand in for a missing val split."""
    if Path(model).suffix.lower() in CHECKPOINT_SUFFIXES:
        from centermask.training.checkpoint import load_checkpoint

        if source.folder.resolve().name in load_checkpoint(model).info.get("held_out", ()):
            return str(source.note)
    return (
        f"{source.path}: these {len(source.images)} pictures may have been trained on: this set came without a val "
        "split, and the model does not say that its training held them out"
    )


def _titled(figures: Figures, model: str, data: Path, split: str, notes: Sequence[str]) -> Figures:
    """With the notes, and what a report is called."""
    assert figures.evidence is not None
    title = f"{Path(model).name} on {data.resolve().name}, {split}"
    return replace(figures, notes=(*figures.notes, *notes), evidence=replace(figures.evidence, title=title))


def _load(model: str, device: Device, threads: int | None, protocol: EvalProtocol) -> Predictor:
    settings: dict[str, Any] = {"threads": threads, "score_threshold": 0.0, "clip_boxes": not protocol.published}
    if protocol.published:
        settings["max_overlap"] = 1.0
    predictor: type[Predictor] = Predictor
    if protocol.scales != (1.0,):
        predictor, settings["scales"] = ScaledPredictor, protocol.scales
    if Path(model).suffix.lower() not in CHECKPOINT_SUFFIXES:
        if protocol.flip:
            raise ValueError(f"{model}: the flip test needs a checkpoint (.pt): it averages what an .onnx file hides")
        return predictor(model_path(model), device=device, **settings)
    try:
        import torch

        from centermask.training.checkpoint import load_checkpoint
        from centermask.training.torch_network import TorchNetwork
    except ModuleNotFoundError as error:
        raise ImportError(f"a checkpoint needs the package {error.name}: pip install 'centermask[train]'") from None
    network = load_checkpoint(model).build()
    place = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    lowest: dict[str, Any] = {"score_threshold": 0.0} if protocol.published else {}
    return predictor(TorchNetwork(network, device=place, threads=threads, flip=protocol.flip, **lowest), **settings)


def _evaluate_results(path: Path, dataset: CocoDataset) -> Figures:
    """A COCO result file: a list of results, or a document as `centermask predict --coco` writes it."""
    notes: list[str] = []
    try:
        document = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    rows = _matched_by_name(path, document, dataset, notes) if isinstance(document, dict) else read_results(path)
    images, categories = {record.image_id for record in dataset.records}, set(dataset.category_ids)
    kept = [row for row in rows if row["image_id"] in images and row["category_id"] in categories]
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} of {len(rows)} results are of pictures or classes that the data lacks")
    if rows and not kept:
        raise ValueError(f"{path}: no result is of a picture and a class of this data set")
    keys: tuple[tuple[IouType, str], ...] = (("bbox", "bbox"), ("segm", "segmentation"))
    kinds = [kind for kind, key in keys if all(key in row for row in kept)]
    if "segm" in kinds:
        kinds.append("boundary")
    evidence = _evidence(dataset, kept, kinds, images)
    crowds = Counter((row["image_id"], row["category_id"]) for row in kept)
    beyond = sum(max(0, count - evidence.max_dets) for count in crowds.values())
    if beyond:
        notes.append(
            f"{beyond} results beyond the best {evidence.max_dets} of a picture and class do not count, as in COCO"
        )
    return Figures(_compare(evidence, kinds), None, tuple(notes), evidence)


def _matched_by_name(
    path: Path, document: dict[str, Any], dataset: CocoDataset, notes: list[str]
) -> list[dict[str, Any]]:
    try:
        names = {row["id"]: row["name"] for row in document["categories"]}
        files = {row["id"]: Path(row["file_name"]) for row in document["images"]}
        annotations = list(document["annotations"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a COCO document needs images, annotations and categories ({error})") from None
    check_results(annotations, str(path))  # ground truth, for one, has no scores
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    images = _matched_files(path, files, {record.image_id: record.path for record in dataset.records})
    left_out = sorted({name for name in names.values() if name not in ids})
    if left_out:
        notes.append(f"classes that only the results know are left out: {', '.join(left_out)}")
    return [
        {**row, "image_id": images[row["image_id"]], "category_id": ids[names[row["category_id"]]]}
        for row in annotations
        if names.get(row.get("category_id")) in ids and row.get("image_id") in images
    ]


def _matched_files(path: Path, files: Mapping[Any, Path], pictures: Mapping[int, Path]) -> dict[Any, int]:
    """The picture of each file of a result document: the one whose path ends most like the file's."""
    by_name: dict[str, list[int]] = {}
    for key, picture in pictures.items():
        by_name.setdefault(picture.name, []).append(key)
    found: dict[int, list[tuple[int, Any]]] = {}
    for file_id, file in files.items():
        shared = {key: _shared_end(file, pictures[key]) for key in by_name.get(file.name, ())}
        best = [key for key, count in shared.items() if count == max(shared.values())]
        if len(best) > 1:
            raise ValueError(f"{path}: {file} may be {pictures[best[0]]} or {pictures[best[1]]}")
        for key in best:
            found.setdefault(key, []).append((shared[key], file_id))
    matched: dict[Any, int] = {}
    for key, rows in found.items():
        longest = [file_id for count, file_id in rows if count == max(count for count, _ in rows)]
        if len(longest) > 1:
            raise ValueError(f"{path}: {files[longest[0]]} and {files[longest[1]]} may both be {pictures[key]}")
        matched[longest[0]] = key
    return matched


def _shared_end(one: Path, other: Path) -> int:
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one.parts), len(other.parts)))
