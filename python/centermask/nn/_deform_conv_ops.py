"""The core's deformable convolution behind `torch.library`: kernels, shapes, gradients, autocast.

The operators are `torch.ops.centermask.deform_conv2d` and `torch.ops.centermask.deform_conv2d_backward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from centermask import _core
from centermask._cuda import require_cuda, torch_allows_tf32
from centermask._ops_cuda import out_size
from centermask._ops_deform import wants_relu

_library: Any = torch.library.Library("centermask", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "deform_conv2d(Tensor x, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias, SymInt[2] stride, "
    "SymInt[2] padding, SymInt[2] dilation, SymInt groups, str? activation) -> Tensor"
)
# An empty tensor stands for a gradient that is not wanted.
_library.define(
    "deform_conv2d_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor offset, Tensor? mask, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, bool[5] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _numpy(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"deform_conv2d: tensors must be float32 or float64 on the CPU, got {tensor.dtype} "
            "(under torch.autocast half precision is computed in float32)"
        )
    return tensor.detach().resolve_neg().numpy()


def _forward_cpu(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> Tensor:
    output = _core.deform_conv2d(
        _numpy(x),
        _numpy(weight),
        _numpy(offset),
        _numpy(mask),
        _numpy(bias),
        cast("tuple[int, int]", stride),
        cast("tuple[int, int]", padding),
        cast("tuple[int, int]", dilation),
        groups,
        wants_relu(activation),
        torch.get_num_threads(),
    )
    return torch.from_numpy(output)


def _backward_cpu(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    gradients = _core.deform_conv2d_backward(
        _numpy(grad_output),
        _numpy(x),
        _numpy(weight),
        _numpy(offset),
        _numpy(mask),
        cast("tuple[int, int]", stride),
        cast("tuple[int, int]", padding),
        cast("tuple[int, int]", dilation),
        groups,
        cast("tuple[bool, bool, bool, bool, bool]", needs),
        torch.get_num_threads(),
    )
    return tuple(x.new_empty(0) if gradient is None else torch.from_numpy(gradient) for gradient in gradients)


_library.impl("deform_conv2d", _forward_cpu, "CPU")
_library.impl("deform_conv2d_backward", _backward_cpu, "CPU")


# Capsules are the cheapest way to hand a tensor over: half a microsecond each, against two for `Tensor.numpy()` and
# five for `Tensor.__dlpack__()`.
def _capsule(tensor: Tensor | None) -> Any:
    return None if tensor is None else to_dlpack(tensor)


@cache
def _allocator(device: torch.device) -> Callable[[int], tuple[int, Tensor]]:
    def allocate(size: int) -> tuple[int, Tensor]:
        memory = torch.empty(size, dtype=torch.uint8, device=device)
        return memory.data_ptr(), memory

    return allocate


def _stream(device: torch.device) -> int:
    # An x on the CPU, among tensors that are not, is the core's to report.
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0


def _memory_format(x: Tensor) -> torch.memory_format:
    """That of the output and of the gradient by x: channels-last if x is, on CUDA; the CPU's are row-major."""
    if x.is_cuda and x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _forward_cuda(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> Tensor:
    require_cuda("deform_conv2d", "x")
    if x.ndim == 4 and weight.ndim == 4:
        pairs = cast("tuple[tuple[int, int], ...]", (stride, padding, dilation))
        size = out_size(x.shape[2:], weight.shape[2:], *pairs)
        shape: tuple[int, ...] = (x.shape[0], weight.shape[0], size[0], size[1])
    else:
        shape = (0, 0, 0, 0)  # the core says what is wrong
    output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))
    _core.deform_conv2d_cuda(
        _capsule(x),
        _capsule(weight),
        _capsule(offset),
        _capsule(mask),
        _capsule(bias),
        _capsule(output),
        cast("tuple[int, int]", stride),
        cast("tuple[int, int]", padding),
        cast("tuple[int, int]", dilation),
        groups,
        wants_relu(activation),
        torch_allows_tf32(torch),
        _allocator(x.device),
        _stream(x.device),
    )
    return output


def _backward_cuda(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    require_cuda("deform_conv2d", "x")
    gradients = _empty_gradients(x, weight, offset, mask, needs)
    _core.deform_conv2d_backward_cuda(
        _capsule(grad_output),
        _capsule(x),
        _capsule(weight),
        _capsule(offset),
        _capsule(mask),
        tuple(map(_capsule, gradients)),
        cast("tuple[int, int]", stride),
        cast("tuple[int, int]", padding),
        cast("tuple[int, int]", dilation),
        groups,
        torch_allows_tf32(torch),
        torch.are_deterministic_algorithms_enabled(),
        _allocator(x.device),
        _stream(x.device),
    )
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _empty_gradients(
    x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, needs: Sequence[bool]
) -> list[Tensor | None]:
    """By x, weight, offset, mask, bias; None where not wanted."""

    def like(tensor: Tensor, form: torch.memory_format = torch.contiguous_format) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=form)

    return [
        like(x, _memory_format(x)) if needs[0] else None,
        like(weight) if needs[1] else None,
        like(offset) if needs[2] else None,
        like(mask) if needs[3] and mask is not None else None,
        x.new_empty(weight.shape[0]) if needs[4] else None,
    ]


_library.impl("deform_conv2d", _forward_cuda, "CUDA")
_library.impl("deform_conv2d_backward", _backward_cuda, "CUDA")


@torch.library.register_fake("centermask::deform_conv2d", lib=_library)  # type: ignore[untyped-decorator]
def _forward_fake(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> Tensor:
    kernel = weight.shape[2:]
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    shape = (x.shape[0], weight.shape[0], size[0], size[1])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_memory_format(x))


@torch.library.register_fake("centermask::deform_conv2d_backward", lib=_library)  # type: ignore[untyped-decorator]
def _backward_fake(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    gradients = _empty_gradients(x, weight, offset, mask, needs)
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, offset, mask, _, *ctx.geometry, activation = inputs
    # Where relu has cut, the output is zero: that is all the backward pass needs to know of the activation.
    ctx.save_for_backward(x, weight, offset, mask, output if activation == "relu" else None)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, offset, mask, output = ctx.saved_tensors
    if output is not None:
        grad_output = grad_output * (output > 0)
    needs = list(ctx.needs_input_grad[:5])
    gradients = torch.ops.centermask.deform_conv2d_backward(grad_output, x, weight, offset, mask, *ctx.geometry, needs)
    return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *[None] * 5


torch.library.register_autograd("centermask::deform_conv2d", _backward, setup_context=_setup_context, lib=_library)


def _autocast_cpu(*args: Any) -> Tensor:
    # The places of the samples need float32, also when the layers around compute in half precision.
    def cast_up(arg: Any) -> Any:
        return arg.float() if isinstance(arg, Tensor) and arg.dtype in (torch.float16, torch.bfloat16) else arg

    with torch.autocast("cpu", enabled=False):
        result: Tensor = torch.ops.centermask.deform_conv2d(*map(cast_up, args))
    return result


_AUTOCAST_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def _autocast_cuda(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    # x, weight and bias as a convolution's; the places of the samples, and their weights, in float32.
    dtype = torch.get_autocast_dtype("cuda")

    def cast_down(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)

    places = (offset.float(), None if mask is None else mask.float())
    bias, *settings = rest
    # As torch.library.register_autocast does it, and four times cheaper than leaving torch.autocast.
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_CUDA):
        result: Tensor = torch.ops.centermask.deform_conv2d(
            cast_down(x), cast_down(weight), *places, cast_down(bias), *settings
        )
    return result


# By hand, since torch.library.register_autocast came only with PyTorch 2.7.
_library.impl("deform_conv2d", _autocast_cpu, "AutocastCPU")
_library.impl("deform_conv2d", _autocast_cuda, "AutocastCUDA")
