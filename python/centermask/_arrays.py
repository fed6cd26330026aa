"""How arrays of other libraries come in: NumPy arrays as they are, anything that speaks DLPack without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_DLPACK_CPU = (1, 3)  # kDLCPU, kDLCUDAHost: memory that NumPy can read


def as_array(value: Any, op: str, argument: str) -> npt.NDArray[Any]:
    """Sees `value` as a NumPy array without copying.

    Args:
        value: a NumPy array, or a CPU tensor of any library that implements DLPack (PyTorch, JAX, ...).
            A tensor that records gradients is seen without them.
        op: name of the operation, for messages.
        argument: name of the argument, for messages.

    Returns:
        An array of the same memory, shape, strides and dtype.

    Raises:
        TypeError: neither an array nor a DLPack tensor, or a dtype that NumPy lacks (bfloat16).
        ValueError: the tensor is on another device.
    """
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        raise TypeError(f"{op}: {argument} must be a NumPy array or a DLPack tensor, got {type(value).__name__}")
    device = int(value.__dlpack_device__()[0])
    if device not in _DLPACK_CPU:
        raise ValueError(f"{op}: {argument} must be on the CPU, got DLPack device type {device}")
    if getattr(value, "requires_grad", False):
        value = value.detach()  # a torch tensor that records gradients refuses to be exported
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        dtype = getattr(value, "dtype", "unknown")
        raise TypeError(f"{op}: {argument} with dtype {dtype} cannot be seen as a NumPy array: {error}") from error


def as_optional_array(value: Any, op: str, argument: str) -> npt.NDArray[Any] | None:
    """`as_array`, but None stays None."""
    return None if value is None else as_array(value, op, argument)
