"""Sessions of ONNX Runtime: which provider, with whose operators, and what is said when none can be had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx
import onnxruntime

from centermask.predictor import model_path
from centermask.session import OnnxNetwork, choose_providers, explain_failure


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("auto", ["CPUExecutionProvider"], ["CPUExecutionProvider"]),
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cpu", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        ("cuda", ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]),
    ],
)
def test_providers(device: str, available: list[str], expected: list[str]) -> None:
    assert choose_providers(device, available) == expected


def test_cuda_without_a_provider_says_what_to_install() -> None:
    with pytest.raises(RuntimeError, match=re.escape("pip install 'centermask[gpu]'")):
        choose_providers("cuda", ["CPUExecutionProvider"])


def test_an_old_runtime_is_told_plainly() -> None:
    message = "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for DeformConv(19) node"
    assert "needs onnxruntime >= 1.25" in explain_failure(Path("m.onnx"), message, "1.23.2")
    assert "needs onnxruntime >= 1.25" not in explain_failure(Path("m.onnx"), message, "1.30.0")


class GpuRuntime:
    """onnxruntime as if it had a CUDA provider, which starts where `works` says so."""

    __version__ = "1.31.0"

    def __init__(self, works: bool) -> None:
        self.works = works

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def SessionOptions(self) -> Any:
        return onnxruntime.SessionOptions()

    def InferenceSession(self, path: str, options: Any, providers: list[str]) -> Any:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if self.works:
            session.get_providers = lambda: providers
        return session


@pytest.mark.parametrize(
    ("works", "with_cuda", "definitions", "uses_library"),
    [
        (True, False, True, False),  # ours would run on the CPU
        (True, True, True, True),
        (False, False, True, True),  # all of it runs on the CPU
        (True, False, False, True),  # a file that knows no other way
    ],
)
def test_on_a_gpu_operators_without_cuda_are_not_used(
    works: bool, with_cuda: bool, definitions: bool, uses_library: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = model_path("default")
    if not definitions:
        model = onnx.load(path)
        del model.functions[:]
        path = tmp_path / "bare.onnx"
        onnx.save(model, path)
    monkeypatch.setattr("centermask.session.import_onnxruntime", lambda: GpuRuntime(works))
    monkeypatch.setattr("centermask.ort.has_cuda", lambda: with_cuda)
    network = OnnxNetwork(path, threads=1)
    assert network.uses_library == uses_library
    assert network.device == ("cuda" if works else "cpu")
