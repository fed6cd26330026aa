"""examples/ray_data.py: what a worker makes of a batch of files. (Needs ray: pip install "ray[data]".)"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("ray.data")
pytest.importorskip("onnxruntime")

from centermask import Predictor
from centermask.cli import sample_picture

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ray_data.py"


def test_a_worker_finds_what_the_predictor_finds_and_reports_damaged_files() -> None:
    spec = importlib.util.spec_from_file_location("ray_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    worker = example.Worker("default", "cpu", 1)
    found = worker({"path": ["bad.jpg", "a.jpg"], "bytes": [b"no picture", sample_picture().read_bytes()]})
    assert {len(column) for column in found.values()} == {2}
    assert "not an image" in found["error"][0]
    assert found["path"] == ["bad.jpg", "a.jpg"]
    (expected,) = Predictor("default", device="cpu", threads=1)(sample_picture()).to_coco(0)
    assert found["score"][1] == expected["score"]
    assert found["bbox"][1] == expected["bbox"]
    assert found["counts"][1] == expected["segmentation"]["counts"]
    assert [found["height"][1], found["width"][1]] == expected["segmentation"]["size"]
