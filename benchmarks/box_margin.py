"""What `box_margin` is worth: one checkpoint's masks, clipped to boxes that are grown by more or less.

    python benchmarks/box_margin.py DATA --checkpoints NAME=FILE.pt ... [--margins 0 0.05 0.1 0.2 0.3] [--json FILE]

The network runs once; its outputs are assembled and judged anew for each margin.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centermask.predictor import Predictor
from centermask.session import NetworkOutput
from centermask.training.checkpoint import load_checkpoint
from centermask.training.data import CocoDataset, load_datasets
from centermask.training.evaluate import evaluate
from centermask.training.torch_network import TorchNetwork

KEYS = ("mask_ap", "mask_ap50", "mask_ap75", "mask_ap_small", "mask_ap_medium", "mask_ap_large", "box_ap")


class Replayed:
    """A network that gives its outputs again, in the order of the first time."""

    def __init__(self, network: TorchNetwork) -> None:
        self.network = network
        self.info = network.info
        self.outputs: list[NetworkOutput] = []
        self.next: int | None = None

    def __call__(self, images: NDArray[np.float32]) -> NetworkOutput:
        """See `centermask.session.Network`."""
        if self.next is None:
            self.outputs.append(self.network(images))
            return self.outputs[-1]
        self.next += 1
        return self.outputs[self.next - 1]


def with_margins(checkpoint: Path, data: CocoDataset, margins: list[float]) -> dict[str, Any]:
    """Figures by margin."""
    network = Replayed(TorchNetwork(load_checkpoint(checkpoint).build()))
    result = {}
    for margin in margins:
        network.info = replace(network.info, box_margin=margin)
        figures, _ = evaluate(Predictor(network, score_threshold=0.0), data)
        result[f"{margin:g}"] = {key: figures.values.get(key) for key in KEYS}
        network.next = 0
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoints", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--margins", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--json", type=Path, help="what is in it under other names stays")
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
    for entry in arguments.checkpoints:
        name, _, file = entry.partition("=")
        classes = load_checkpoint(file).config.class_names
        data = load_datasets([arguments.data], "val", classes=classes)
        found[name] = with_margins(Path(file), data, arguments.margins)
        print(name, {margin: values["mask_ap"] for margin, values in found[name].items()}, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
