"""What a model file says about itself: the metadata of docs/model_contract.md, read and written in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from centermask.config import STRIDE, MaskHead, ModelConfig, PreprocessConfig, SizePolicy

CONTRACT_VERSION = 1
PREFIX = "centermask."


class ModelFileError(ValueError):
    """A model file is not ours, or this version cannot use it. The message names the file and the cause."""


@dataclass(frozen=True)
class ModelInfo:
    """Everything beside the network itself that prediction needs.

    Attributes:
        name: `<backbone>-<neck>-<mask head>`.
        profile: How the graph was written: `standard`, `fused` or `decomposed`.
        class_names: Of the heatmap's channels, in order.
        category_ids: The data set's own id of each class.
        preprocess: How pictures become the network's input.
        stride: Input pixels per cell of the maps.
        top_k: Most instances in one picture.
        score_threshold: Threshold for showing, 0..1; the graph itself keeps every peak above a lower one.
        max_overlap: Of two instances of a class whose boxes overlap more than this (IoU), the Predictor keeps the
            better one.
        class_agnostic: Of two instances of different classes as well, so that an object has one label only.
        mask_head: `dynamic`, `shape` or `none`.
        box_margin: Masks are clipped to the box grown by this fraction on each side.
        training_data: What the weights were trained on, in words.
        ap: Measured average precisions, such as `{"animals val mask_ap": 0.31}`; fractions 0..1.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    preprocess: PreprocessConfig
    mask_head: MaskHead
    box_margin: float
    top_k: int
    profile: str = "standard"
    stride: int = STRIDE
    score_threshold: float = 0.3
    max_overlap: float = 0.65
    class_agnostic: bool = False
    training_data: str = ""
    ap: tuple[tuple[str, float], ...] = ()

    @classmethod
    def from_config(cls, config: ModelConfig, **changes: Any) -> ModelInfo:
        """The information that a model built from `config` carries; `changes` set what the config does not know."""
        return cls(
            name=config.name,
            class_names=config.class_names,
            category_ids=config.category_ids,
            preprocess=config.preprocess,
            mask_head=config.mask_head,
            box_margin=config.box_margin,
            top_k=config.top_k,
            **{"max_overlap": config.max_overlap, **changes},
        )

    def to_metadata(self) -> dict[str, str]:
        """The `metadata_props` of an ONNX file: strings only."""
        values = {
            "version": str(CONTRACT_VERSION),
            "profile": self.profile,
            "model": self.name,
            "classes": json.dumps(list(self.class_names), ensure_ascii=False),
            "category_ids": json.dumps(list(self.category_ids)),
            "color": self.preprocess.color,
            "mean": json.dumps(list(self.preprocess.mean)),
            "std": json.dumps(list(self.preprocess.std)),
            "size": str(self.preprocess.size),
            "size_policy": self.preprocess.policy,
            "stride": str(self.stride),
            "top_k": str(self.top_k),
            "score_threshold": repr(self.score_threshold),
            "max_overlap": repr(self.max_overlap),
            "class_agnostic": json.dumps(self.class_agnostic),
            "mask_head": self.mask_head,
            "box_margin": repr(self.box_margin),
            "training_data": self.training_data,
            "ap": json.dumps(dict(self.ap)),
        }
        return {PREFIX + key: value for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str = "model") -> ModelInfo:
        """The inverse of `to_metadata`.

        Args:
            metadata: All of a file's entries; those of others are ignored.
            source: Name of the file, for errors.

        Raises:
            ModelFileError: An entry is missing or cannot be read, or the contract is newer than this version.
        """
        try:
            return _Reader(metadata, source).info()
        except ModelFileError:
            raise
        except (AttributeError, TypeError, ValueError) as error:  # a value of another kind than its key promises
            raise ModelFileError(f"{source}: the metadata cannot be read: {error}") from None


class _Reader:
    """Takes entries out of metadata; every complaint names the file and the key."""

    def __init__(self, metadata: Mapping[str, str], source: str) -> None:
        self._metadata = metadata
        self._source = source

    def info(self) -> ModelInfo:
        version = self._parsed("version", int)
        if version > CONTRACT_VERSION:
            raise ModelFileError(
                f"{self._source}: written for contract version {version}, this centermask reads up to "
                f"{CONTRACT_VERSION}; install a newer centermask"
            )
        info = ModelInfo(
            name=self._text("model"),
            profile=self._text("profile"),
            class_names=tuple(str(name) for name in self._list("classes")),
            category_ids=tuple(int(value) for value in self._list("category_ids")),
            preprocess=PreprocessConfig(
                size=self._parsed("size", int),
                policy=self._choice("size_policy", get_args(SizePolicy)),
                color=self._choice("color", ("rgb", "bgr")),
                mean=self._three("mean"),
                std=self._three("std"),
            ),
            stride=self._parsed("stride", int),
            top_k=self._parsed("top_k", int),
            score_threshold=self._parsed("score_threshold", float),
            max_overlap=self._parsed("max_overlap", float),
            class_agnostic=self._flag("class_agnostic"),
            mask_head=self._choice("mask_head", get_args(MaskHead)),
            box_margin=self._parsed("box_margin", float),
            training_data=self._text("training_data"),
            ap=tuple((str(key), float(value)) for key, value in self._parsed("ap", json.loads).items()),
        )
        if len(info.class_names) != len(info.category_ids):
            raise ModelFileError(
                f"{self._source}: the metadata has {len(info.class_names)} classes but "
                f"{len(info.category_ids)} category ids"
            )
        return info

    def _text(self, key: str) -> str:
        try:
            return self._metadata[PREFIX + key]
        except KeyError:
            raise ModelFileError(
                f"{self._source}: not a centermask model: metadata key '{PREFIX}{key}' is missing"
            ) from None

    def _parsed(self, key: str, parse: Any) -> Any:
        text = self._text(key)
        try:
            return parse(text)
        except ValueError as error:
            raise ModelFileError(
                f"{self._source}: metadata '{PREFIX}{key}' cannot be read: {text!r} ({error})"
            ) from None

    def _flag(self, key: str) -> bool:
        """`true` or `false`; absent means false."""
        text = self._metadata.get(PREFIX + key, "false")
        if text not in ("true", "false"):
            raise ModelFileError(f"{self._source}: metadata '{PREFIX}{key}' must be true or false, got {text!r}")
        return text == "true"

    def _list(self, key: str) -> list[Any]:
        value = self._parsed(key, json.loads)
        if not isinstance(value, list):
            raise ModelFileError(f"{self._source}: metadata '{PREFIX}{key}' must be a JSON list, got {value!r}")
        return value

    def _three(self, key: str) -> tuple[float, float, float]:
        values = self._list(key)
        if len(values) != 3:
            raise ModelFileError(f"{self._source}: metadata '{PREFIX}{key}' must have 3 numbers, got {values!r}")
        return float(values[0]), float(values[1]), float(values[2])

    def _choice(self, key: str, allowed: tuple[str, ...]) -> Any:
        value = self._text(key)
        if value not in allowed:
            raise ModelFileError(
                f"{self._source}: metadata '{PREFIX}{key}' must be one of {', '.join(allowed)}; got {value!r}"
            )
        return value
