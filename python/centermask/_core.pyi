"""The compiled core. Thin: exact dtypes in, NumPy arrays out; `centermask.ops` is what users call."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str
has_cuda: bool
"""Whether the `*_cuda` functions are there. They take NumPy arrays and DLPack capsules, write into what they are given,
and get scratch memory from `allocate`: bytes to (address, owner)."""

def assemble_bitmaps(
    mask_features: NDArray[Any],
    mask_params: NDArray[Any],
    boxes: NDArray[Any],
    labels: NDArray[Any] | None,
    head: str,
    height: int,
    width: int,
    image_to_input: list[float],
    stride: int,
    threshold: float,
    box_margin: float,
    threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]: ...
def assemble_bitmaps_cuda(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    labels: Any,
    head: str,
    height: int,
    width: int,
    image_to_input: list[float],
    stride: int,
    threshold: float,
    box_margin: float,
    bitmaps: Any,
    stream_handle: int,
) -> None: ...
def assemble_masks(
    mask_features: NDArray[Any],
    mask_params: NDArray[Any],
    boxes: NDArray[Any],
    labels: NDArray[Any] | None,
    head: str,
    height: int,
    width: int,
    image_to_input: list[float],
    stride: int,
    threshold: float,
    box_margin: float,
    threads: int,
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
def build_info() -> dict[str, Any]: ...
def cuda_devices() -> dict[str, Any]: ...
def assemble_masks_cuda(
    mask_features: Any,
    mask_params: Any,
    boxes: Any,
    labels: Any,
    head: str,
    height: int,
    width: int,
    image_to_input: list[float],
    stride: int,
    threshold: float,
    box_margin: float,
    runs: Any,
    offsets: Any,
    allocate: Callable[[int], tuple[int, object]],
    stream_handle: int,
) -> None: ...
def decode_centers(
    heatmap: NDArray[Any], top_k: int, score_threshold: float, threads: int
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...
def decode_centers_cuda(
    heatmap: Any,
    top_k: int,
    score_threshold: float,
    scores: Any,
    labels: Any,
    index: Any,
    count: Any,
    allocate: Callable[[int], tuple[int, object]],
    stream_handle: int,
) -> None: ...
def gather_patches(features: NDArray[Any], index: NDArray[np.int64], threads: int) -> NDArray[Any]: ...
def gather_patches_cuda(features: Any, index: Any, patches: Any, stream_handle: int) -> None: ...
def isa_available() -> tuple[str, ...]: ...
def isa_used() -> str: ...
def deform_conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    offset: NDArray[Any],
    mask: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
    threads: int,
) -> NDArray[Any]: ...
def deform_conv2d_cuda(
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    bias: Any,
    output: Any,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    relu: bool,
    allow_tf32: bool,
    allocate: Callable[[int], tuple[int, object]],
    stream_handle: int,
) -> None: ...
def deform_conv2d_backward_cuda(
    grad_output: Any,
    x: Any,
    weight: Any,
    offset: Any,
    mask: Any,
    gradients: tuple[Any, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    allow_tf32: bool,
    deterministic: bool,
    allocate: Callable[[int], tuple[int, object]],
    stream_handle: int,
) -> None: ...
def deform_conv2d_backward(
    grad_output: NDArray[Any],
    x: NDArray[Any],
    weight: NDArray[Any],
    offset: NDArray[Any],
    mask: NDArray[Any] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    needs: tuple[bool, bool, bool, bool, bool],
    threads: int,
) -> tuple[
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any] | None,
]: ...

class PackedDeformConv2d:
    def __init__(
        self,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        relu: bool,
        allow_bf16: bool,
        threads: int,
    ) -> None: ...
    @property
    def uses_bf16(self) -> bool: ...
    def __call__(
        self,
        x: NDArray[Any],
        offset: NDArray[Any],
        mask: NDArray[Any] | None,
        threads: int,
    ) -> NDArray[Any]: ...

def mask_windows(
    boxes: NDArray[np.float32], height: int, width: int, image_to_input: list[float], box_margin: float
) -> NDArray[np.int64]: ...
def preprocess(
    image: NDArray[np.uint8],
    image_to_input: list[float],
    mean: list[float],
    std: list[float],
    swap_channels: bool,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def preprocess_cuda(
    image: Any,
    image_to_input: list[float],
    mean: list[float],
    std: list[float],
    swap_channels: bool,
    out: Any,
    stream_handle: int,
) -> None: ...
def rle_area(runs: NDArray[np.uint32], offsets: NDArray[np.int64]) -> NDArray[np.int64]: ...
def rle_bbox(runs: NDArray[np.uint32], offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float64]: ...
def rle_check(runs: NDArray[np.uint32], height: int, width: int) -> None: ...
def rle_decode(runs: NDArray[np.uint32], offsets: NDArray[np.int64], height: int, width: int) -> NDArray[np.uint8]: ...
def rle_encode(bitmaps: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
def rle_from_polygons(
    points: NDArray[np.float64], ring_offsets: NDArray[np.int64], height: int, width: int, even_odd: bool
) -> NDArray[np.uint32]: ...
def rle_from_strings(
    strings: list[bytes], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
def rle_iou(
    detection_runs: NDArray[np.uint32],
    detection_offsets: NDArray[np.int64],
    truth_runs: NDArray[np.uint32],
    truth_offsets: NDArray[np.int64],
    is_crowd: NDArray[np.uint8],
    height: int,
    width: int,
    threads: int,
) -> NDArray[np.float64]: ...
def rle_merge(runs: NDArray[np.uint32], offsets: NDArray[np.int64], intersect: bool) -> NDArray[np.uint32]: ...
def rle_to_polygons(
    runs: NDArray[np.uint32], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]: ...
def rle_to_strings(runs: NDArray[np.uint32], offsets: NDArray[np.int64]) -> list[bytes]: ...
