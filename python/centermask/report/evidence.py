"""What a report is made from: the labels, the results, and a way to the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Evidence:
    """An evaluation's inputs.

    Attributes:
        truth: A COCO dictionary of the pictures that were evaluated.
        results: COCO results on them.
        known: For each image id the category ids that are labelled in it.
        has_masks: Compare masks; else boxes.
        picture: Gives the picture of an image id, uint8 RGB [h, w, 3].
        title: What was evaluated, on what.
        max_dets: Best results of a picture and class that count.
        seconds: For each step (preprocess, network, masks) the time of each picture; empty for a result file.
    """

    truth: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    known: Mapping[Any, set[int]]
    has_masks: bool
    picture: Callable[[Any], NDArray[np.uint8]]
    title: str = ""
    max_dets: int = 100
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
