"""Deformable convolution for PyTorch: the function and the modules. Importing this registers the operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from centermask._ops_deform import as_pair, wants_relu
from centermask.nn import _deform_conv_ops as _deform_conv_ops  # registers torch.ops.centermask


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
    differs from torchvision's. Runs on `torch.get_num_threads()` threads of the CPU, or on the current CUDA stream.

    Under CPU autocast it computes in, and returns, float32. Under CUDA autocast x, weight and bias are taken in the
    autocast dtype, and so is the result; offset and mask are taken in float32. float32 products on CUDA are computed
    in TensorFloat-32 where `torch.backends.cudnn.allow_tf32` (PyTorch's default) says that convolutions may, and the
    gradients are the same on every run where `torch.use_deterministic_algorithms(True)` asks for it. On CUDA the output
    is channels-last if x is, which is the fastest, and so is the gradient by x.

    Args:
        x: [N, C, H, W], float32 or float64; on CUDA float32, float16 or bfloat16.
        weight: [Co, C/groups, kh, kw], dtype of x.
        offset: [N, 2*offset_groups*kh*kw, Ho, Wo], (dy, dx) interleaved for each tap, in input pixels; dtype of x or
            float32.
        mask: [N, offset_groups*kh*kw, Ho, Wo], dtype of offset, or None for ones.
        bias: [Co], dtype of x, or None.
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
        NotImplementedError: tensors on a CUDA device, and a core that was built without CUDA.
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
        if torch.is_autocast_enabled(x.device.type) and self.conv_offset.weight.dtype == torch.float32:
            with torch.autocast(x.device.type, enabled=False):  # what is rounded once stays so
                predicted = self.conv_offset(x.float())
        else:
            predicted = self.conv_offset(x)
        if predicted.dtype in (torch.float16, torch.bfloat16):
            predicted = predicted.float()
        taps = self.offset_groups * self.kernel_size[0] * self.kernel_size[1]
        return predicted[:, : 2 * taps], predicted[:, 2 * taps :].sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """x [N, C, H, W] -> [N, Co, Ho, Wo]."""
        offset, mask = self.places(x)
        return super().forward(x, offset, mask)
