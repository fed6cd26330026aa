"""The operators of this package for ONNX Runtime, for whoever builds sessions of their own.

Example:
    >>> import onnxruntime
    >>> from centermask import ort
    >>> options = onnxruntime.SessionOptions()
    >>> ort.register(options)
    >>> session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])

The library needs nothing of Python: C and C++ programs give its path to `RegisterCustomOpsLibrary`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from centermask import _core

LIBRARY = "libcentermask_ort.so"


class LibraryError(RuntimeError):
    """The operator library is not there, or ONNX Runtime cannot load it. The message names the file and the cause."""


def library_path() -> Path:
    """The absolute path of the operator library.

    Raises:
        LibraryError: This installation has none.
    """
    path = Path(str(resources.files("centermask") / LIBRARY)).absolute()
    if not path.is_file():
        raise LibraryError(f"{path}: no such file; the package was built without it (CMake option CENTERMASK_ORT)")
    return path


def has_cuda() -> bool:
    """Whether the operators are there for the CUDA provider too: the package was built with `CENTERMASK_CUDA=ON`."""
    return _core.has_cuda


def register(session_options: Any) -> None:
    """Makes the operators of the domain `centermask` known to sessions that are made with these options.

    Args:
        session_options: `onnxruntime.SessionOptions`; once for each.

    Raises:
        LibraryError: The library is missing or for another kind of processor, or the runtime is older than 1.15.
    """
    path = library_path()
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # the runtime's exceptions share no base class of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LibraryError(f"{path}: onnxruntime cannot load it: {reason}") from None
