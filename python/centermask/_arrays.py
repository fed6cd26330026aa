"""How arrays come in: NumPy, or anything that speaks DLPack, without a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_array(value: Any, op: str, argument: str) -> NDArray[Any]:
    """`value` as a NumPy array that shares its memory.

    Args:
        value: A NumPy array, or an object with `__dlpack__` whose memory the CPU can read.
        op: Name of the operation, for the error.
        argument: Name of the argument, for the error.

    Raises:
        TypeError: It is neither, or its producer will not lend it (another device, a tensor that requires grad).
    """
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        raise TypeError(f"{op}: {argument} must be a NumPy array or a DLPack tensor, got {type(value).__name__}")
    try:
        array: NDArray[Any] = np.from_dlpack(value)
    except (RuntimeError, TypeError, ValueError, BufferError) as error:
        raise TypeError(f"{op}: {argument} cannot be read as a CPU array: {error}") from error
    return array
