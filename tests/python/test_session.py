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

CPU = ["CPUExecutionProvider"]
GPU = ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("auto", CPU, CPU),
        ("auto", GPU, GPU),
        ("cpu", GPU, CPU),
        ("cuda", GPU, GPU),
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
    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, works: bool) -> None:
        self.works = works
        self.asked_for: list[list[str]] = []

    def get_available_providers(self) -> list[str]:
        return list(GPU)

    def InferenceSession(self, path: str, options: Any, providers: list[str]) -> Any:
        self.asked_for.append(providers)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if self.works:
            session.get_providers = lambda: providers
        return session


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The embedded model without the definitions in ONNX's own operators."""
    model = onnx.load(model_path("default"))
    del model.functions[:]
    onnx.save(model, tmp_path / "bare.onnx")
    return tmp_path / "bare.onnx"


@pytest.mark.parametrize(
    ("works", "with_cuda", "definitions", "uses_library", "asked_for"),
    [
        (True, False, True, False, [GPU]),  # ours would run on the CPU
        (True, True, True, True, [GPU]),
        (False, False, True, True, [GPU, CPU]),  # all of it runs on the CPU; the GPU is tried once
        (False, True, True, True, [GPU]),
        (True, False, False, True, [GPU, GPU]),  # a file that knows no other way
    ],
)
def test_on_a_gpu_operators_without_cuda_are_not_used(
    works: bool,
    with_cuda: bool,
    definitions: bool,
    uses_library: bool,
    asked_for: list[list[str]],
    bare: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = GpuRuntime(works)
    monkeypatch.setattr("centermask.session.import_onnxruntime", lambda: runtime)
    monkeypatch.setattr("centermask.ort.has_cuda", lambda: with_cuda)
    network = OnnxNetwork(model_path("default") if definitions else bare, threads=1)
    assert network.uses_library == uses_library
    assert network.device == ("cuda" if works else "cpu")
    assert runtime.asked_for == asked_for
    assert not caplog.messages


@pytest.mark.parametrize(
    ("works", "with_cuda", "told"), [(True, True, True), (True, False, False), (False, False, True)]
)
def test_a_missing_library_is_told_where_it_would_be_used(
    works: bool, with_cuda: bool, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("centermask.session.import_onnxruntime", lambda: GpuRuntime(works))
    monkeypatch.setattr("centermask.ort.has_cuda", lambda: with_cuda)
    monkeypatch.setattr("centermask.ort.LIBRARY", "libnothing.so")
    assert not OnnxNetwork(model_path("default"), threads=1).uses_library
    assert [("slower" in message, "libnothing.so" in message) for message in caplog.messages] == [(True, True)] * told


def test_a_gpu_that_was_insisted_on_and_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("centermask.session.import_onnxruntime", lambda: GpuRuntime(works=False))
    with pytest.raises(RuntimeError, match="could not start its CUDA provider"):
        OnnxNetwork(model_path("default"), device="cuda")


def test_no_library_is_used_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = GpuRuntime(works=True)
    monkeypatch.setattr("centermask.session.import_onnxruntime", lambda: runtime)
    assert not OnnxNetwork(model_path("default"), library=False).uses_library
    assert runtime.asked_for == [GPU]
