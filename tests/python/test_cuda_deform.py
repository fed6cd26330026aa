"""deform_conv2d of centermask.nn on every device: one list of cases, against the CPU core in float64.

The CPU core in float64 is itself tested against plain loops, in test_deform_conv2d.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_cases import BY_NAME, EVERY_CASE, PRECISIONS, TOLERANCE, Case, skip_without

torch = pytest.importorskip("torch")

from centermask import ops  # noqa: E402
from centermask.nn import deform_conv2d  # noqa: E402

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = ("x", "weight", "offset", "mask", "bias")


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def tensors_of(case: Case, device: str, precision: str, places32: bool = False) -> tuple[list[Any], Any]:
    """x, weight, offset, mask, bias, and grad_output, rounded to the precision."""
    dtype = DTYPES[precision]
    made: list[Any] = []
    for i, array in enumerate(case.arrays()):
        own = torch.float32 if places32 and i in (2, 3) else dtype
        made.append(None if array is None else torch.from_numpy(array).to(own).to(device))
    return made[:5], made[5]


def in_double(tensors: list[Any]) -> list[Any]:
    return [None if t is None else t.detach().double().cpu().numpy() for t in tensors]


def reference(case: Case, tensors: list[Any]) -> np.ndarray:
    activation = "relu" if case.relu else None
    return np.asarray(ops.deform_conv2d(*in_double(tensors), **case.geometry, activation=activation))


def check(actual: Any, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Close as a whole, and no single element far off."""
    error = actual.detach().double().cpu().numpy() - expected
    assert actual.shape == expected.shape
    assert np.isfinite(error).all(), what
    if error.size:
        assert np.linalg.norm(error) <= tolerance * np.linalg.norm(expected) + 1e-30, what
        # The largest of up to 10^5 errors is about 5 times their root mean square, and an element of the result may be
        # as much larger than the mean.
        scale = np.sqrt(np.mean(expected**2)) + np.abs(expected)
        assert (np.abs(error) <= 10 * tolerance * scale + 1e-30).all(), what


def layout(tensor: Any, how: str) -> Any:
    """The same values in another memory layout."""
    if tensor is None or how == "plain":
        return tensor
    if how == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    return tensor.repeat_interleave(2, -1)[..., ::2]


@EVERY_CASE
@pytest.mark.parametrize("how", ["plain", "channels_last", "gaps"])
@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_forward(case: Case, how: str, device: str, precision: str) -> None:
    skip_without(device)
    tensors, _ = tensors_of(case, device, precision, places32=how == "channels_last")
    with tf32(precision == "tf32"):
        output = deform_conv2d(
            *(layout(t, how) for t in tensors), **case.geometry, activation="relu" if case.relu else None
        )
    assert output.dtype == DTYPES[precision]
    if device == "cuda" and how == "channels_last":
        assert case.n == 0 or output.is_contiguous(memory_format=torch.channels_last)
    elif how != "channels_last":
        assert output.is_contiguous()
    check(output, reference(case, tensors), TOLERANCE[precision])


def gradients_of(case: Case, tensors: list[Any], grad: Any, how: str = "plain") -> list[Any]:
    geometry = (case.stride, case.padding, case.dilation, case.groups)
    needs = [True, True, True, tensors[3] is not None, tensors[4] is not None]
    arguments = [layout(t, how) for t in (grad, *tensors[:4])]
    return list(torch.ops.centermask.deform_conv2d_backward(*arguments, *geometry, needs))


@EVERY_CASE
@pytest.mark.parametrize("how", ["plain", "channels_last", "gaps"])
@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_gradients(case: Case, how: str, device: str, precision: str) -> None:
    skip_without(device)
    tensors, grad = tensors_of(case, device, precision, places32=how == "channels_last")
    expected = ops.deform_conv2d_backward(grad.double().cpu().numpy(), *in_double(tensors), **case.geometry)
    with tf32(precision == "tf32"):
        gradients = gradients_of(case, tensors, grad, how)
    for name, tensor, actual, wanted in zip(NAMES, tensors, gradients, expected, strict=True):
        if tensor is None:
            assert actual.numel() == 0
            continue
        assert actual.dtype == tensor.dtype, name
        check(actual, wanted, TOLERANCE[precision], name)
    if device == "cuda" and how == "channels_last":
        assert case.n == 0 or gradients[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
def test_some_gradients_are_those_of_all() -> None:
    skip_without("cuda")
    case = BY_NAME["groups and offset groups"]
    tensors, grad = tensors_of(case, "cuda", "fp32")
    everything = gradients_of(case, tensors, grad)
    for wanted in range(5):
        needs = [i == wanted for i in range(5)]
        geometry = (case.stride, case.padding, case.dilation, case.groups)
        some = torch.ops.centermask.deform_conv2d_backward(grad, *tensors[:4], *geometry, needs)
        assert [g.numel() > 0 for g in some] == needs
        check(some[wanted], everything[wanted].double().cpu().numpy(), 1e-5)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_directional_derivatives(device: str, relu: bool) -> None:
    """The slope along a random direction of all five tensors, by central differences, is what autograd says."""
    skip_without(device)
    case = Case("slope", 2, 12, (9, 8), 10, groups=2, offset_groups=3)
    arrays = case.arrays(3)
    # Away from whole pixels, where the slope by the offset jumps.
    arrays[2] = np.floor(arrays[2]) + np.random.default_rng(4).uniform(0.2, 0.8, arrays[2].shape)
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.from_numpy(a).float().to(device).requires_grad_() for a in arrays[:5]]
    steps = [torch.randn(t.shape, generator=generator).to(device) * 2e-3 for t in tensors]
    # The bias keeps every output away from the kink of relu: half of them on, half of them off.
    with torch.no_grad():
        tensors[4].copy_(torch.tensor([30.0, -30.0] * 5))
    weights = torch.from_numpy(arrays[5]).float().to(device)

    def value(*args: Any) -> Any:
        output = deform_conv2d(*args, **case.geometry, activation="relu" if relu else None)
        return (output * weights).double().sum()

    with tf32(False):
        value(*tensors).backward()
        slope = sum((t.grad.double() * step.double()).sum() for t, step in zip(tensors, steps, strict=True))
        with torch.no_grad():
            above = value(*(t + step for t, step in zip(tensors, steps, strict=True)))
            below = value(*(t - step for t, step in zip(tensors, steps, strict=True)))
    # Rounding: outputs of up to 30, 2^-24 of it each, a thousand of them, with random signs.
    assert abs((above - below) / 2 - slope) < 1e-3 + 2e-3 * abs(slope)


@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
def test_places_that_are_no_numbers_count_as_zero(device: str, precision: str) -> None:
    skip_without(device)
    case = BY_NAME["neck"]
    tensors, grad = tensors_of(case, device, precision)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 6e4, -6e4], device=device)
    flat = tensors[2].view(-1)
    flat[::7] = bad.repeat(-(-flat[::7].numel() // 5))[: flat[::7].numel()].to(flat.dtype)
    with tf32(precision == "tf32"):
        check(deform_conv2d(*tensors, **case.geometry), reference(case, tensors), TOLERANCE[precision])
        gradients = gradients_of(case, tensors, grad)
    expected = ops.deform_conv2d_backward(grad.double().cpu().numpy(), *in_double(tensors), **case.geometry)
    for name, actual, wanted in zip(NAMES, gradients, expected, strict=True):
        check(actual, wanted, TOLERANCE[precision], name)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_forward_is_the_same_every_time_and_backward_on_request(precision: str) -> None:
    skip_without("cuda")
    case = Case("busy", 4, 64, (32, 32), 64, spread=3.0)
    tensors, grad = tensors_of(case, "cuda", precision)
    before = torch.are_deterministic_algorithms_enabled()
    # This setting also fills new memory with NaN, so that whatever is not written shows.
    torch.use_deterministic_algorithms(True)
    try:
        with tf32(precision == "tf32"):
            outputs = [deform_conv2d(*tensors, **case.geometry) for _ in range(3)]
            gradients = [gradients_of(case, tensors, grad) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(before)
    for again in outputs[1:]:
        assert torch.equal(outputs[0], again)
    for others in gradients[1:]:
        for name, a, b in zip(NAMES, gradients[0], others, strict=True):
            assert torch.equal(a, b), name
    expected = ops.deform_conv2d_backward(grad.double().cpu().numpy(), *in_double(tensors), **case.geometry)
    for name, actual, wanted in zip(NAMES, gradients[0], expected, strict=True):
        check(actual, wanted, TOLERANCE[precision], name)
