"""Deformable convolution for PyTorch: the core's kernels behind `torch.library`, and the modules around them.

The operators are `torch.ops.centermask.deform_conv2d` and `torch.ops.centermask.deform_conv2d_backward`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from centermask import _core
from centermask._ops_deform import as_pair, wants_relu

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
    return x.new_empty((x.shape[0], weight.shape[0], size[0], size[1]))


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
    def like(tensor: Tensor | None, needed: bool) -> Tensor:
        return tensor.new_empty(tensor.shape) if needed and tensor is not None else x.new_empty(0)

    bias = x.new_empty(weight.shape[0] if needs[4] else 0)
    return like(x, needs[0]), like(weight, needs[1]), like(offset, needs[2]), like(mask, needs[3]), bias


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


# By hand, since torch.library.register_autocast came only with PyTorch 2.7.
_library.impl("deform_conv2d", _autocast_cpu, "AutocastCPU")


def deform_conv2d(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Tensor:
    """Modulated deformable convolution (DCNv2, arXiv 1811.11168), differentiable by all five tensors.

    The same computation as `centermask.ops.deform_conv2d` and `torchvision.ops.deform_conv2d`; the order of arguments
    differs from torchvision's. Runs on `torch.get_num_threads()` threads. Under CPU autocast it computes in, and
    returns, float32.

    Args:
        x: [N, C, H, W], float32 or float64.
        weight: [Co, C/groups, kh, kw], dtype of x.
        offset: [N, 2*offset_groups*kh*kw, Ho, Wo], (dy, dx) interleaved for each tap, in input pixels.
        mask: [N, offset_groups*kh*kw, Ho, Wo], or None for ones.
        bias: [Co] or None.
        stride: int or (vertical, horizontal), as are padding and dilation.
        padding: see stride.
        dilation: see stride.
        groups: groups of channels that are convolved separately.
        activation: None or "relu", fused.

    Returns:
        [N, Co, Ho, Wo], dtype of x.

    Raises:
        ValueError: shapes that do not fit each other.
        TypeError: dtypes that do not.
    """
    wants_relu(activation)
    result: Tensor = torch.ops.centermask.deform_conv2d(
        x,
        weight,
        offset,
        mask,
        bias,
        as_pair(stride, "stride"),
        as_pair(padding, "padding"),
        as_pair(dilation, "dilation"),
        groups,
        activation,
    )
    return result


class DeformConv2d(nn.Module):
    """A deformable convolution that is told where to sample: forward(x, offset, mask=None).

    Args:
        in_channels: C.
        out_channels: Co.
        kernel_size: int or (kh, kw).
        stride: int or (vertical, horizontal), as are padding and dilation.
        padding: see stride. `kernel_size // 2` keeps the size of the map; 0, the default, shrinks it, as `nn.Conv2d`.
        dilation: see stride.
        groups: groups of channels that are convolved separately.
        bias: whether to have one.
        activation: None or "relu", fused.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        wants_relu(activation)
        if groups < 1 or in_channels % groups != 0 or out_channels % groups != 0:
            raise ValueError(
                f"DeformConv2d: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = as_pair(kernel_size, "kernel_size")
        self.stride = as_pair(stride, "stride")
        self.padding = as_pair(padding, "padding")
        self.dilation = as_pair(dilation, "dilation")
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initialisation of `nn.Conv2d`."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, C, H, W], offset [N, 2*offset_groups*kh*kw, Ho, Wo], mask [N, offset_groups*kh*kw, Ho, Wo]."""
        return deform_conv2d(
            x,
            self.weight,
            offset,
            mask,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


class DeformConvPack(DeformConv2d):
    """A deformable convolution that predicts from x where to sample: forward(x).

    Its `conv_offset`, an ordinary convolution of the same geometry, gives 3*kh*kw channels for each offset group: all
    2*kh*kw offsets first, (dy, dx) interleaved for each tap, then kh*kw mask logits (sigmoid). This is the layout of
    CenterNet, mmdetection and CenterNet-better. It starts at zero, so that the layer begins as a plain convolution
    with all samples weighted by 1/2; without that, DCN layers are known not to converge.

    Args: as `DeformConv2d`, and `offset_groups`: groups of channels with offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str | None = None,
        offset_groups: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            activation=activation,
        )
        if offset_groups < 1 or in_channels % offset_groups != 0:
            raise ValueError(f"DeformConvPack: offset_groups={offset_groups} must divide in_channels={in_channels}")
        self.offset_groups = offset_groups
        self.conv_offset = nn.Conv2d(
            in_channels,
            3 * offset_groups * self.kernel_size[0] * self.kernel_size[1],
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(cast(Tensor, self.conv_offset.bias))

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C, H, W] -> offset [N, 2*offset_groups*kh*kw, Ho, Wo], mask [N, offset_groups*kh*kw, Ho, Wo] in 0..1.

        Both in float32 (or wider), also under autocast: in half precision an offset far from zero would lose up to an
        eighth of a pixel.
        """
        predicted = self.conv_offset(x)
        if predicted.dtype in (torch.float16, torch.bfloat16):
            predicted = predicted.float()
        taps = self.offset_groups * self.kernel_size[0] * self.kernel_size[1]
        return predicted[:, : 2 * taps], predicted[:, 2 * taps :].sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x [N, C, H, W] -> [N, Co, Ho, Wo]."""
        offset, mask = self.places(x)
        return super().forward(x, offset, mask)
