"""Arrays on CUDA devices: the library that they come from, whose memory and current stream the operations use.

PyTorch and CuPy are known; arrays of other libraries (DLPack or `__cuda_array_interface__`) are seen through whichever
of the two is there. Nothing here imports PyTorch or CuPy for arrays on the CPU.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from centermask import _core
from centermask._arrays import as_array

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged

Allocate = Callable[[int], tuple[int, object]]
"""Bytes to (address, owner) of new memory on one device, for work on the current stream."""


class Library(Protocol):
    """What is needed of a library of CUDA arrays. Shapes are tuples, dtypes their NumPy names, devices ordinals."""

    def owns(self, value: Any) -> bool:
        """Whether `value` is an array of this library, on any device."""

    def on_cuda(self, value: Any) -> bool:
        """Whether an own array is on a CUDA device."""

    def take(self, value: Any) -> Any:
        """An array of another library on a CUDA device as an own one, without a copy, in order with its work."""

    def capsule(self, value: Any) -> Any:
        """An own array as a DLPack capsule, without synchronisation."""

    def device(self, value: Any) -> int:
        """The ordinal of an own array's device."""

    def dtype(self, value: Any) -> str:
        """The dtype's name of an own array."""

    def channels_last(self, value: Any) -> bool:
        """Whether a [N, C, H, W] array lies in memory as [N, H, W, C], and not at the same time as [N, C, H, W]."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, channels_last: bool = False) -> Any:
        """A new array, row-major or as `channels_last` understands it."""

    def stream(self, device: int) -> int:
        """The handle of the current stream."""

    def allocate(self, device: int) -> Allocate:
        """What the core gets its scratch memory from."""

    def host(self, value: Any) -> NDArray[Any]:
        """A copy in NumPy, once the current stream has come so far."""

    def allow_tf32(self) -> bool:
        """Whether float32 products may be computed in TensorFloat-32."""

    def deterministic(self) -> bool:
        """Whether results must be the same bits on every run."""


class _Torch:
    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def owns(self, value: Any) -> bool:
        return isinstance(value, self._torch.Tensor)

    def on_cuda(self, value: Any) -> bool:
        return bool(value.is_cuda)

    def take(self, value: Any) -> Any:
        if hasattr(value, "__dlpack__"):
            return self._torch.from_dlpack(value)
        return self._torch.as_tensor(value, device="cuda")

    def capsule(self, value: Any) -> Any:
        return self._torch.utils.dlpack.to_dlpack(value.detach().resolve_neg())

    def device(self, value: Any) -> int:
        return int(value.get_device())

    def dtype(self, value: Any) -> str:
        return str(value.dtype).removeprefix("torch.")

    def channels_last(self, value: Any) -> bool:
        form = self._torch.channels_last
        return value.ndim == 4 and value.is_contiguous(memory_format=form) and not value.is_contiguous()

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, channels_last: bool = False) -> Any:
        torch = self._torch
        form = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{device}", memory_format=form)

    def stream(self, device: int) -> int:
        return int(self._torch.cuda.current_stream(device).cuda_stream)

    def allocate(self, device: int) -> Allocate:
        def allocate(size: int) -> tuple[int, object]:
            memory = self.empty((size,), "uint8", device)
            return memory.data_ptr(), memory

        return allocate

    def host(self, value: Any) -> NDArray[Any]:
        array: NDArray[Any] = value.cpu().numpy()
        return array

    def allow_tf32(self) -> bool:
        return torch_allows_tf32(self._torch)

    def deterministic(self) -> bool:
        return bool(self._torch.are_deterministic_algorithms_enabled())


class _CuPy:
    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def owns(self, value: Any) -> bool:
        return isinstance(value, self._cupy.ndarray)

    def on_cuda(self, value: Any) -> bool:
        return True

    def take(self, value: Any) -> Any:
        return self._cupy.from_dlpack(value) if hasattr(value, "__dlpack__") else self._cupy.asarray(value)

    def capsule(self, value: Any) -> Any:
        return value.__dlpack__(stream=-1)

    def device(self, value: Any) -> int:
        return int(value.device.id)

    def dtype(self, value: Any) -> str:
        return str(value.dtype.name)

    def channels_last(self, value: Any) -> bool:
        if value.ndim != 4 or value.flags.c_contiguous:
            return False
        return bool(value.transpose(0, 2, 3, 1).flags.c_contiguous)

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, channels_last: bool = False) -> Any:
        with self._cupy.cuda.Device(device):
            if channels_last:
                n, c, h, w = shape
                return self._cupy.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)
            return self._cupy.empty(shape, dtype)

    def stream(self, device: int) -> int:
        with self._cupy.cuda.Device(device):
            return int(self._cupy.cuda.get_current_stream().ptr)

    def allocate(self, device: int) -> Allocate:
        def allocate(size: int) -> tuple[int, object]:
            with self._cupy.cuda.Device(device):
                memory = self._cupy.cuda.alloc(size)
            return memory.ptr, memory

        return allocate

    def host(self, value: Any) -> NDArray[Any]:
        array: NDArray[Any] = value.get()
        return array

    def allow_tf32(self) -> bool:
        return False

    def deterministic(self) -> bool:
        return False


def torch_allows_tf32(torch: Any) -> bool:
    """PyTorch's setting for cuDNN's convolutions: `torch.backends.cudnn.allow_tf32`."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # set in the newer way, and differently for convolutions and recurrent layers
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")


_MAKERS: dict[str, Callable[[Any], Library]] = {"torch": _Torch, "cupy": _CuPy}


@cache
def _library(name: str) -> Library:
    return _MAKERS[name](importlib.import_module(name))


def _known_library(value: Any) -> Library | None:
    for name, array_type in (("torch", "Tensor"), ("cupy", "ndarray")):
        # An array of a library can only be there once that library has been imported.
        module = sys.modules.get(name)
        if module is not None and isinstance(value, getattr(module, array_type, ())):
            return _library(name)
    return None


def _is_foreign_cuda(value: Any) -> bool:
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in _DLPACK_CUDA
    return hasattr(value, "__cuda_array_interface__")


def _any_library(op: str, argument: str, value: Any) -> Library:
    # What has been imported already is what the caller works with.
    for name in sorted(_MAKERS, key=lambda name: name not in sys.modules):
        try:
            return _library(name)
        except ImportError:
            continue
    raise ImportError(
        f"{op}: {argument} is a CUDA array of type {type(value).__name__}: for arrays other than those of PyTorch and "
        "CuPy, one of these two must be installed"
    )


def cuda_library(op: str, **arguments: Any) -> Library | None:
    """The library whose memory and stream a call works with: that of the first argument on a CUDA device.

    Args:
        op: Name of the operation, for messages.
        arguments: Arrays of any kind, or None.

    Returns:
        The library, or None where no argument is on a CUDA device.

    Raises:
        NotImplementedError: An argument is on a CUDA device, and the core was built without CUDA.
        ImportError: It belongs to a library through which nothing new can be made, with no other at hand.
    """
    for argument, value in arguments.items():
        if value is None or isinstance(value, np.ndarray):
            continue
        library = _known_library(value)
        if library is not None:
            if not library.on_cuda(value):
                continue
        elif not _is_foreign_cuda(value):
            continue
        require_cuda(op, argument)
        return _any_library(op, argument, value) if library is None else library
    return None


def require_cuda(op: str, argument: str) -> None:
    """Raises NotImplementedError where the core was built without CUDA."""
    if not _core.has_cuda:
        raise NotImplementedError(
            f"{op}: {argument} is on a CUDA device, and this centermask was built without CUDA; build it from source "
            "with nvcc on PATH: pip install . -Ccmake.define.CENTERMASK_CUDA=ON"
        )


def own(library: Library, value: Any, op: str, argument: str) -> Any:
    """`value` as an array of `library` if it is on a CUDA device, as a NumPy array or an own one if it is not."""
    if value is None or library.owns(value) or isinstance(value, np.ndarray):
        return value
    other = _known_library(value)
    on_cuda = _is_foreign_cuda(value) if other is None else other.on_cuda(value)
    return library.take(value) if on_cuda else as_array(value, op, argument)
