"""What the extension makes of NumPy arrays and DLPack capsules, and what it says to the rest. Needs no GPU."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import pytest

from centermask import _core, ops


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device", ctypes.c_int32), ("index", ctypes.c_int32), ("rank", ctypes.c_int32),
        ("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    ]  # fmt: skip


KEPT: list[Any] = []


def capsule(array: np.ndarray, *, device: int = 1, index: int = 0, strides: bool = True, **change: int) -> Any:
    """A hand-made DLManagedTensor on `array`, which may claim to lie anywhere."""
    kind = {"i": 0, "u": 1, "f": 2, "b": 6}[array.dtype.kind]
    extents = (ctypes.c_int64 * array.ndim)(*array.shape)
    steps = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
    tensor = Tensor(
        array.ctypes.data, device, index, array.ndim, kind, 8 * array.itemsize, 1, extents, steps if strides else None
    )
    for name, value in change.items():
        setattr(tensor, name, value)
    KEPT.append((array, extents, steps, tensor))
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(tensor), b"dltensor", None)


HEATMAP = np.random.default_rng(0).standard_normal((2, 3, 8, 9)).astype(np.float32)


def decode(heatmap: Any) -> Any:
    return _core.decode_centers(heatmap, 5, 0.0, 1)


def same(actual: Any, expected: Any) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_capsules_are_read_like_arrays() -> None:
    same(decode(capsule(HEATMAP)), decode(HEATMAP))
    same(decode(capsule(HEATMAP, strides=False)), decode(HEATMAP))
    turned = HEATMAP.transpose(0, 1, 3, 2)
    same(decode(capsule(turned)), decode(turned))
    pinned = capsule(HEATMAP, device=3)  # host memory of CUDA
    same(decode(pinned), decode(HEATMAP))
    shifted = capsule(HEATMAP[1:], data=HEATMAP.ctypes.data, byte_offset=HEATMAP.strides[0])
    same(decode(shifted), decode(HEATMAP[1:]))


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_capsules_of_numpy_are_not_used_up_and_not_leaked(version: Any) -> None:
    if version is not None and np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("this NumPy makes no versioned capsules")
    array = HEATMAP.copy()
    options = {} if version is None else {"max_version": version}
    before = sys.getrefcount(array)
    made = array.__dlpack__(**options)
    assert ("versioned" in repr(made)) == (version is not None)
    same(decode(made), decode(array))
    same(decode(made), decode(array))
    assert sys.getrefcount(array) > before
    del made
    assert sys.getrefcount(array) == before


def test_torch_capsules() -> None:
    torch = pytest.importorskip("torch")
    same(decode(torch.utils.dlpack.to_dlpack(torch.from_numpy(HEATMAP))), decode(HEATMAP))
    half = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="heatmap has dtype bfloat16, which no operation takes on the CPU"):
        decode(torch.utils.dlpack.to_dlpack(half))


def test_what_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="decode_centers: heatmap must be on the CPU, got cuda:3"):
        decode(capsule(HEATMAP, device=2, index=3))
    with pytest.raises(ValueError, match="decode_centers: heatmap must be on the CPU, got cuda:0"):
        decode(capsule(HEATMAP, device=13))
    with pytest.raises(ValueError, match="must be on the CPU or a CUDA device, got DLPack device type 7"):
        decode(capsule(HEATMAP, device=7))
    with pytest.raises(TypeError, match=r"heatmap has the DLPack type \(code 2, bits 32, lanes 4\), which no"):
        decode(capsule(HEATMAP, lanes=4))
    with pytest.raises(TypeError, match=r"\(code 5, bits 64, lanes 1\)"):
        decode(capsule(HEATMAP, kind=5, bits=64))
    with pytest.raises(ValueError, match="heatmap has 7 dimensions, at most 6 are taken"):
        decode(capsule(np.zeros((1,) * 7, np.float32)))
    with pytest.raises(ValueError, match="heatmap is not aligned to its elements"):
        decode(capsule(HEATMAP, byte_offset=2))
    used = capsule(HEATMAP)
    ctypes.pythonapi.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
    ctypes.pythonapi.PyCapsule_SetName(used, b"used_dltensor")
    with pytest.raises(TypeError, match="heatmap must be a NumPy array or an unused DLPack capsule"):
        decode(used)
    with pytest.raises(TypeError, match="heatmap must be an array, got None"):
        decode(None)


class Elsewhere:
    """An array that says where it lies."""

    def __init__(self, device: int) -> None:
        self.device = device

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nobody may take this")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


@pytest.mark.skipif(_core.has_cuda, reason="centermask was built with CUDA")
@pytest.mark.parametrize("device", [2, 13])
def test_without_cuda_the_error_says_how_to_build_with_it(device: int) -> None:
    there = Elsewhere(device)
    how = r"is on a CUDA device, and .* without CUDA; .* pip install \. -Ccmake.define.CENTERMASK_CUDA=ON"
    with pytest.raises(NotImplementedError, match="deform_conv2d: offset " + how):
        ops.deform_conv2d(HEATMAP, np.zeros((4, 3, 3, 3), np.float32), there)
    with pytest.raises(NotImplementedError, match="decode_centers: heatmap " + how):
        ops.decode_centers(there, 5)
    with pytest.raises(NotImplementedError, match="gather_patches: index " + how):
        ops.gather_patches(HEATMAP, there)
    with pytest.raises(NotImplementedError, match="assemble_masks: boxes " + how):
        ops.assemble_masks(HEATMAP, HEATMAP, there, image_size=(4, 4))
    with pytest.raises(NotImplementedError, match="preprocess: image " + how):
        ops.preprocess(there, np.eye(2, 3), (4, 4), mean=(0, 0, 0), std=(1, 1, 1))


def test_other_devices_are_named() -> None:
    with pytest.raises(ValueError, match="decode_centers: heatmap must be on the CPU, got DLPack device type 10"):
        ops.decode_centers(Elsewhere(10), 5)
