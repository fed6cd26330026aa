"""The operations on CUDA arrays: outputs and scratch memory from the arrays' library, on its current stream.

The functions here take what those of `centermask.ops` have looked at, with the library that `cuda_library` found first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from centermask import _core
from centermask._cuda import Library, own

Pair = tuple[int, int]


class _Call:
    """One call's arrays and device: that of the first argument on CUDA (the core checks that all are on one)."""

    def __init__(self, library: Library, op: str, **arguments: Any) -> None:
        self.library = library
        self.arrays = {name: own(library, value, op, name) for name, value in arguments.items()}
        self.device = next(
            library.device(array)
            for array in self.arrays.values()
            if array is not None and library.owns(array) and library.on_cuda(array)
        )
        self.stream = library.stream(self.device)

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The argument's shape; zeros where it has another rank, for the core to say so."""
        shape = tuple(self.arrays[name].shape)
        return shape if len(shape) == rank else (0,) * rank

    def dtype(self, name: str) -> str:
        array = self.arrays[name]
        return array.dtype.name if isinstance(array, np.ndarray) else self.library.dtype(array)

    def empty(self, shape: tuple[int, ...], dtype: str, channels_last: bool = False) -> Any:
        return self.library.empty(shape, dtype, self.device, channels_last)

    def channels_last(self, name: str) -> bool:
        array = self.arrays[name]
        return self.library.owns(array) and self.library.channels_last(array)

    def run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Calls a function of the core with the arrays, what else it takes, and the stream."""
        kernel(*map(self.capsule, self.arrays.values()), *arguments, self.stream)

    def capsule(self, array: Any) -> Any:
        return self.library.capsule(array) if self.library.owns(array) else array

    def allocate(self, size: int) -> tuple[int, object]:
        return self.library.allocate(self.device)(size)


def out_size(size: Sequence[int], kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> list[int]:
    """Height and width of a convolution's output; nonsense, but no error, for arguments that the core will refuse."""
    return [
        max(0, (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // max(stride[i], 1) + 1)
        for i in range(2)
    ]


def deform_conv2d(
    library: Library,
    arrays: dict[str, Any],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    relu: bool,
    allow_tf32: bool | None,
) -> Any:
    """`arrays`: x, weight, offset, mask, bias, in this order."""
    call = _Call(library, "deform_conv2d", **arrays)
    x, weight = call.shape("x", 4), call.shape("weight", 4)
    size = out_size(x[2:], weight[2:], stride, padding, dilation)
    output = call.empty((x[0], weight[0], size[0], size[1]), call.dtype("x"), call.channels_last("x"))
    tf32 = library.allow_tf32() if allow_tf32 is None else allow_tf32
    geometry = (stride, padding, dilation, groups)
    call.run(_core.deform_conv2d_cuda, library.capsule(output), *geometry, relu, tf32, call.allocate)
    return output


def deform_conv2d_backward(
    library: Library,
    arrays: dict[str, Any],
    needs: Sequence[bool],
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    allow_tf32: bool | None,
    deterministic: bool | None,
) -> tuple[Any, ...]:
    """`arrays`: grad_output, x, weight, offset, mask, in this order; `needs` for x, weight, offset, mask and bias."""
    call = _Call(library, "deform_conv2d", **arrays)
    gradients = [
        # That of x may be channels-last; all others are row-major.
        call.empty(tuple(call[name].shape), call.dtype(name), name == "x" and call.channels_last("x")) if need else None
        for name, need in zip(("x", "weight", "offset", "mask"), needs[:4], strict=True)
    ]
    gradients.append(call.empty((call.shape("weight", 4)[0],), call.dtype("x")) if needs[4] else None)
    call.run(
        _core.deform_conv2d_backward_cuda,
        tuple(None if gradient is None else library.capsule(gradient) for gradient in gradients),
        stride,
        padding,
        dilation,
        groups,
        library.allow_tf32() if allow_tf32 is None else allow_tf32,
        library.deterministic() if deterministic is None else deterministic,
        call.allocate,
    )
    return tuple(gradients)


def decode_centers(library: Library, heatmap: Any, top_k: int, score_threshold: float) -> tuple[Any, ...]:
    call = _Call(library, "decode_centers", heatmap=heatmap)
    n = call.shape("heatmap", 4)[0]
    shape = (n, max(top_k, 0))
    outputs = [call.empty(shape, "float32"), call.empty(shape, "int64"), call.empty(shape, "int64")]
    outputs.append(call.empty((n,), "int64"))
    call.run(_core.decode_centers_cuda, top_k, score_threshold, *map(library.capsule, outputs), call.allocate)
    return tuple(outputs)


def gather_patches(library: Library, features: Any, index: Any) -> Any:
    call = _Call(library, "gather_patches", features=features, index=index)
    n, channels = call.shape("features", 4)[:2]
    patches = call.empty((n, call.shape("index", 2)[1], channels * 9), call.dtype("features"))
    call.run(_core.gather_patches_cuda, library.capsule(patches))
    return patches


def preprocess(
    library: Library,
    image: Any,
    matrix: list[float],
    size: Pair,
    mean: list[float],
    std: list[float],
    swap_channels: bool,
    out: Any,
) -> Any:
    """`out`: a CUDA array of any library, or None."""
    call = _Call(library, "preprocess", image=image)
    result = call.empty((3, *size), "float32") if out is None else out
    target = call.capsule(own(library, result, "preprocess", "out"))
    call.run(_core.preprocess_cuda, matrix, mean, std, swap_channels, target)
    return result


def assemble_runs(
    library: Library, arrays: dict[str, Any], arguments: tuple[Any, ...], width: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Runs and their offsets in the CPU's memory, for which it waits.

    `arrays`: mask_features, mask_params, boxes, labels, in this order; `arguments`: those of the core from `head` to
    `box_margin`.
    """
    call = _Call(library, "assemble_masks", **arrays)
    instances = call.shape("boxes", 2)[0]
    offsets = call.empty((instances + 1,), "int64")
    # Most masks have two runs in each pixel column. Where these do not suffice, a second pass has all it needs.
    capacity = instances * (2 * width + 16)
    while True:
        runs = call.empty((capacity,), "uint32")
        outputs = (library.capsule(runs), library.capsule(offsets))
        call.run(_core.assemble_masks_cuda, *arguments, *outputs, call.allocate)
        on_host = library.host(offsets)
        needed = int(on_host[-1])
        if needed <= capacity:
            return library.host(runs[:needed]), on_host
        capacity = needed


def assemble_packed(library: Library, arrays: dict[str, Any], arguments: tuple[Any, ...], size: Pair) -> Any:
    """uint8 [I, H, (W + 7) // 8] on the device, for which nothing waits. The arguments are those of `assemble_runs`."""
    call = _Call(library, "assemble_masks", **arrays)
    bitmaps = call.empty((call.shape("boxes", 2)[0], size[0], (size[1] + 7) // 8), "uint8")
    call.run(_core.assemble_bitmaps_cuda, *arguments, library.capsule(bitmaps))
    return bitmaps


def boxes_on_host(library: Library, boxes: Any) -> NDArray[np.float32]:
    """A copy of a call's boxes."""
    array: NDArray[np.float32] = library.host(own(library, boxes, "assemble_masks", "boxes"))
    return array
