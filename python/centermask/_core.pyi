"""The compiled core. Thin: exact dtypes in, NumPy arrays out; `centermask.ops` is what users call."""

from typing import Any

import numpy.typing as npt

__version__: str

def isa_available() -> tuple[str, ...]: ...
def isa_used() -> str: ...
def deform_conv2d(
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    offset: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None,
    bias: npt.NDArray[Any] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
    threads: int,
) -> npt.NDArray[Any]: ...
def deform_conv2d_backward(
    grad_output: npt.NDArray[Any],
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    offset: npt.NDArray[Any],
    mask: npt.NDArray[Any] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    needs: tuple[bool, bool, bool, bool, bool],
    threads: int,
) -> tuple[
    npt.NDArray[Any] | None,
    npt.NDArray[Any] | None,
    npt.NDArray[Any] | None,
    npt.NDArray[Any] | None,
    npt.NDArray[Any] | None,
]: ...

class PackedDeformConv2d:
    def __init__(
        self,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any] | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        relu: bool,
        threads: int,
    ) -> None: ...
    def __call__(
        self,
        x: npt.NDArray[Any],
        offset: npt.NDArray[Any],
        mask: npt.NDArray[Any] | None,
        threads: int,
    ) -> npt.NDArray[Any]: ...
