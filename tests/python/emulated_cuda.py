"""The way of a CUDA tensor from Python into the kernels and back, on a machine without a GPU.

Run by ctest (see tests/cpp/CMakeLists.txt) with CENTERMASK_EMULATED_CORE naming an extension whose CUDA kernels are
the emulator's, which run on the host. Arrays in the CPU's memory say here that they are on a GPU: PyTorch's by a word
changed in their DLPack capsules, CuPy's by a class that stands in for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import types
from typing import Any

import numpy as np
import pytest

PATH = os.environ.get("CENTERMASK_EMULATED_CORE")
if PATH is None:
    pytest.skip("run by ctest alone", allow_module_level=True)
torch = pytest.importorskip("torch")

loader = importlib.machinery.ExtensionFileLoader("centermask._core", PATH)
spec = importlib.util.spec_from_loader("centermask._core", loader)
assert spec is not None
core = importlib.util.module_from_spec(spec)
sys.modules["centermask._core"] = core
loader.exec_module(core)

import test_cuda_deform as deform  # noqa: E402
import test_cuda_ops as cuda_ops  # noqa: E402
from cuda_cases import BY_NAME, TOLERANCE, Case  # noqa: E402

from centermask.nn import _deform_conv_ops as operators  # noqa: E402


def on_gpu(tensor: Any) -> Any:
    """A capsule of a CPU tensor that says cuda:0."""
    if tensor is None:
        return None
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    device = ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))
    assert device.value == 1
    device.value = 2
    return capsule


class Array:
    """What a CuPy array is asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype, self.ndim, self.flags = array.shape, array.dtype, array.ndim, array.flags
        self.device = types.SimpleNamespace(id=0)

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream == -1  # the core works on the library's own stream, there is nothing to wait for
        return on_gpu(torch.from_numpy(self._array))

    def transpose(self, *axes: int) -> Array:
        return Array(self._array.transpose(*axes))

    def __getitem__(self, index: Any) -> Array:
        return Array(self._array[index])

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return self._array

    def get(self) -> np.ndarray:
        return self._array.copy()


class Memory:
    def __init__(self, size: int) -> None:
        self._bytes = np.full(size + 256, 255, np.uint8)
        self.ptr = -(-self._bytes.ctypes.data // 256) * 256


class Stream(contextlib.nullcontext):  # type: ignore[type-arg]
    ptr = 0

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def synchronize(self) -> None:
        pass


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = types.ModuleType("cupy")
    cupy.__dict__.update(
        ndarray=Array,
        uint8=np.uint8,
        empty=lambda shape, dtype: Array(np.full(shape, 255, np.uint8).astype(dtype)),
        zeros=lambda shape, dtype: Array(np.zeros(shape, dtype)),
        asarray=lambda a: Array(np.array(a)),
        ascontiguousarray=lambda a: Array(np.ascontiguousarray(a)),
        cuda=types.SimpleNamespace(
            Device=lambda _: contextlib.nullcontext(), alloc=Memory, Stream=Stream, get_current_stream=Stream
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for module in (deform, cuda_ops):
        monkeypatch.setattr(module, "skip_without", lambda _: None)
    monkeypatch.setattr(cuda_ops, "on", lambda device, a: a if a is None or device == "cpu" else cupy.asarray(a))
    monkeypatch.setattr(cuda_ops, "host", np.asarray)
    monkeypatch.setattr(operators, "_capsule", on_gpu)
    monkeypatch.setattr(operators, "_stream", lambda _: 0)
    monkeypatch.setattr(operators, "_memory_format", memory_format)


def memory_format(x: Any) -> Any:
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


SMALL = ["relu", "empty batch", "one column", "stride", "5x1", "groups and offset groups", "far offsets"]


@pytest.mark.parametrize("how", ["plain", "channels_last", "gaps"])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("case", [BY_NAME[name] for name in SMALL], ids=lambda case: case.name)
def test_deform_conv2d(case: Case, precision: str, how: str) -> None:
    tensors, grad = deform.tensors_of(case, "cpu", precision, places32=how == "channels_last")
    strided = [deform.layout(t, how) for t in (*tensors, grad)]
    geometry = (case.stride, case.padding, case.dilation, case.groups)
    needs = [True, True, True, case.mask, case.bias]
    with deform.tf32(precision == "tf32"):
        output = operators._forward_cuda(*strided[:5], *geometry, "relu" if case.relu else None)
        gradients = operators._backward_cuda(strided[5], *strided[:4], *geometry, needs)
    deform.check(output, deform.reference(case, tensors), TOLERANCE[precision])
    expected = deform.ops.deform_conv2d_backward(grad.double().numpy(), *deform.in_double(tensors), **case.geometry)
    for name, actual, wanted in zip(deform.NAMES, gradients, expected, strict=True):
        if wanted is None:
            assert actual.numel() == 0
        else:
            deform.check(actual, wanted, TOLERANCE[precision], name)


def test_cupy() -> None:
    cuda_ops.test_cupy_in_cupy_out()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("head", ["dynamic", "shape"])
def test_masks(head: str, classes: int) -> None:
    cuda_ops.test_masks("cuda", head, classes)


def test_masks_with_more_runs_than_guessed() -> None:
    cuda_ops.test_masks_with_more_runs_than_guessed()


def test_errors() -> None:
    x, weight, offset = Array(np.zeros((1, 2, 4, 4), np.float32)), np.zeros((1, 2, 1, 1), np.float32), None
    offset = Array(np.zeros((1, 2, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"deform_conv2d: weight must be on the device of x \(cuda:0\), got cpu"):
        deform.ops.deform_conv2d(x, weight, offset)
    with pytest.raises(ValueError, match=r"deform_conv2d: offset must be on the device of x \(cpu\), got cuda:0"):
        deform.ops.deform_conv2d(weight, weight, offset)
    with pytest.raises(TypeError, match="float64"):
        deform.ops.deform_conv2d(*(Array(np.zeros((1, 2, 1, 1))) for _ in range(3)))
    with pytest.raises(TypeError, match="heatmap must be float32, float16 or bfloat16 on CUDA, got float64"):
        deform.ops.decode_centers(Array(np.zeros((1, 2, 4, 4))), 3)
    with pytest.raises(ValueError, match=r"offset must be \[N=1, 2\*groups\*kh\*kw=2, 4, 4\]"):
        deform.ops.deform_conv2d(x, Array(weight), x[:, :, :2])
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
        deform.ops.deform_conv2d(x[0], Array(weight), offset)
    with pytest.raises(ValueError, match=r"assemble_masks: boxes must be on the device of mask_features"):
        deform.ops.assemble_masks(x[0], x[0], np.zeros((1, 4), np.float32), image_size=(4, 4))
