"""Deformable convolution on arrays. See `centermask.ops`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from centermask import _core, _ops_cuda
from centermask._arrays import as_array, as_optional_array
from centermask._cuda import cuda_library

_OP = "deform_conv2d"

Array = npt.NDArray[Any]


def as_pair(value: int | Sequence[int], argument: str) -> tuple[int, int]:
    """An int, or (vertical, horizontal), as the latter.

    Raises:
        TypeError: something else than integers.
        ValueError: a sequence of another length.
    """
    items = tuple(value) if isinstance(value, Iterable) else (value, value)
    try:
        pair = tuple(operator.index(item) for item in items)
    except TypeError:
        raise TypeError(f"{_OP}: {argument} must be an int or two of them, got {value!r}") from None
    if len(pair) != 2:
        raise ValueError(f"{_OP}: {argument} must be an int or two of them, got {value!r}")
    return pair


def wants_relu(activation: str | None) -> bool:
    """Whether `activation` is "relu".

    Raises:
        ValueError: neither None nor "relu".
    """
    if activation not in (None, "relu"):
        raise ValueError(f"{_OP}: activation must be None or 'relu', got {activation!r}")
    return activation == "relu"


def deform_conv2d(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any = None,
    bias: Any = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
    allow_tf32: bool | None = None,
    threads: int | None = None,
) -> Any:
    """Modulated deformable convolution, DCNv2 (Zhu et al., arXiv 1811.11168).

    Semantics and layouts are those of ONNX `DeformConv` and `torchvision.ops.deform_conv2d` (whose argument order is
    another). Tap (i, j) of output pixel (oy, ox) samples x bilinearly at
    `(oy*stride - padding + i*dilation + dy, ox*stride - padding + j*dilation + dx)`, pixel centres at integers, with
    zero outside; a sample at a NaN or infinite place counts as 0.

    Args:
        x: [N, C, H, W], float32 or float64, or on a CUDA device float32, float16 or bfloat16. Like all arrays here:
            any strides; NumPy or a DLPack tensor, all on one device.
        weight: [Co, C/groups, kh, kw], dtype of x.
        offset: [N, 2*offset_groups*kh*kw, Ho, Wo], dtype of x or float32: (dy, dx) interleaved for each tap, in input
            pixels. The number of offset groups follows from this shape.
        mask: [N, offset_groups*kh*kw, Ho, Wo], dtype of offset: multiplies the samples. None: all ones.
        bias: [Co], dtype of x, or None.
        stride: int or (vertical, horizontal), as are padding and dilation.
        padding: see stride.
        dilation: see stride.
        groups: groups of channels that are convolved separately.
        activation: None or "relu", applied to the result.
        allow_tf32: CUDA and float32 only: whether products may be computed in TensorFloat-32, with 10 bits of mantissa.
            None: as `torch.backends.cudnn.allow_tf32` says for PyTorch's tensors, False for all others.
        threads: None for one thread a core. The result is the same for any number.

    Returns:
        [N, Co, Ho, Wo], dtype of x, with Ho = (H + 2*padding - dilation*(kh - 1) - 1) // stride + 1. On a CUDA device
        an array of x's library, channels-last if x is.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: a wrong dtype or no array.
        NotImplementedError: arrays on a CUDA device, and a core that was built without CUDA.
    """
    geometry = (as_pair(stride, "stride"), as_pair(padding, "padding"), as_pair(dilation, "dilation"), groups)
    relu = wants_relu(activation)
    arrays = {"x": x, "weight": weight, "offset": offset, "mask": mask, "bias": bias}
    library = cuda_library(_OP, **arrays)
    if library is not None:
        return _ops_cuda.deform_conv2d(library, arrays, *geometry, relu, allow_tf32)
    return _core.deform_conv2d(
        as_array(x, _OP, "x"),
        as_array(weight, _OP, "weight"),
        as_array(offset, _OP, "offset"),
        as_optional_array(mask, _OP, "mask"),
        as_optional_array(bias, _OP, "bias"),
        *geometry,
        relu,
        threads or 0,
    )


def deform_conv2d_backward(
    grad_output: Any,
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any = None,
    bias: Any = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    allow_tf32: bool | None = None,
    deterministic: bool | None = None,
    threads: int | None = None,
    needs: Sequence[bool] = (True, True, True, True, True),
) -> tuple[Any, Any, Any, Any, Any]:
    """The gradients of `sum(grad_output * deform_conv2d(x, weight, offset, mask, bias))` without activation.

    Args:
        grad_output: [N, Co, Ho, Wo], dtype of x.
        x: as in `deform_conv2d`, like all that follow.
        weight: see `deform_conv2d`.
        offset: see `deform_conv2d`.
        mask: see `deform_conv2d`.
        bias: only whether it is None matters: then no gradient of it is computed.
        stride: see `deform_conv2d`.
        padding: see `deform_conv2d`.
        dilation: see `deform_conv2d`.
        groups: see `deform_conv2d`.
        allow_tf32: see `deform_conv2d`.
        deterministic: CUDA only: whether the gradients must be the same on every run, bit for bit, at a price. None: as
            `torch.are_deterministic_algorithms_enabled()` says for PyTorch's tensors, False for all others.
        threads: None for one thread a core. For a given number the result is always the same, bit for bit.
        needs: which of the gradients by (x, weight, offset, mask, bias) are wanted.

    Returns:
        The gradients by x, weight, offset, mask and bias, each of the shape and dtype of its argument; None where not
        wanted or where there is no argument. At a sample exactly on a pixel centre, where the interpolation has a
        kink, the derivative by the offset is the one towards larger coordinates. A sample at a NaN or infinite place
        gets zero gradient.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: a wrong dtype or no array.
    """
    wanted = [bool(need) for need in needs]
    if len(wanted) != 5:
        raise ValueError(f"{_OP}: needs must have 5 entries, got {len(wanted)}")
    wanted[3] = wanted[3] and mask is not None
    wanted[4] = wanted[4] and bias is not None
    geometry = (as_pair(stride, "stride"), as_pair(padding, "padding"), as_pair(dilation, "dilation"), groups)
    arrays = {"grad_output": grad_output, "x": x, "weight": weight, "offset": offset, "mask": mask}
    library = cuda_library(_OP, **arrays)
    if library is not None:
        gradients = _ops_cuda.deform_conv2d_backward(library, arrays, wanted, *geometry, allow_tf32, deterministic)
        return gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]
    return _core.deform_conv2d_backward(
        as_array(grad_output, _OP, "grad_output"),
        as_array(x, _OP, "x"),
        as_array(weight, _OP, "weight"),
        as_array(offset, _OP, "offset"),
        as_optional_array(mask, _OP, "mask"),
        *geometry,
        (wanted[0], wanted[1], wanted[2], wanted[3], wanted[4]),
        threads or 0,
    )


class PackedDeformConv2d:
    """`deform_conv2d` on the CPU with constant weights, brought into the kernels' order once.

    The arguments are those of `deform_conv2d`; later changes to the weight array have no effect, nor has a change of
    the environment variable CENTERMASK_ISA (which makes calls fail).

    `allow_bf16=True` asks for products in bfloat16: samples and weights are rounded to 8 bits of mantissa, sums stay in
    float32, and the result differs by some 0.3 %. It takes float32 weights, an even number of channels in each group
    and a processor with AVX512-BF16; elsewhere products stay in float32. `uses_bf16` says which it is.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: a wrong dtype or no array.
    """

    def __init__(
        self,
        weight: Any,
        bias: Any = None,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        activation: str | None = None,
        allow_bf16: bool = False,
        threads: int | None = None,
    ) -> None:
        self._threads = threads or 0
        bias = as_optional_array(bias, _OP, "bias")
        self._packed = _core.PackedDeformConv2d(
            as_array(weight, _OP, "weight"),
            None if bias is None else np.array(bias),
            as_pair(stride, "stride"),
            as_pair(padding, "padding"),
            as_pair(dilation, "dilation"),
            groups,
            wants_relu(activation),
            allow_bf16,
            self._threads,
        )

    @property
    def uses_bf16(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self._packed.uses_bf16

    def __call__(self, x: Any, offset: Any, mask: Any = None) -> Array:
        """x [N, C, H, W], offset and mask as in `deform_conv2d` -> [N, Co, Ho, Wo]."""
        return self._packed(
            as_array(x, _OP, "x"), as_array(offset, _OP, "offset"), as_optional_array(mask, _OP, "mask"), self._threads
        )
