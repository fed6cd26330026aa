"""deform_conv2d on CUDA tensors as a citizen of PyTorch: streams, graphs, autocast, compile, DDP, errors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cuda_cases import skip_without

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402

from centermask import _core  # noqa: E402
from centermask.nn import DeformConvPack, deform_conv2d  # noqa: E402

PAIR = (1, 1)


@pytest.fixture
def cuda() -> Iterator[str]:
    skip_without("cuda")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield "cuda"
    torch.backends.cudnn.allow_tf32 = before


def tensors(device: str, dtype: Any = torch.float32, channels_last: bool = False) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 16, 12, 10), (24, 16, 3, 3), (2, 18, 12, 10), (2, 9, 12, 10), (24,)]
    made = [torch.randn(*shape, generator=generator).to(dtype).to(device) for shape in shapes]
    if channels_last:
        made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return made


@pytest.mark.cuda
def test_works_on_the_current_stream(cuda: str) -> None:
    args = tensors(cuda)
    expected = deform_conv2d(*args, padding=1)
    torch.cuda.synchronize()
    late = [torch.zeros_like(t) for t in args]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what is not on this stream would run now, and see zeros
        for t, value in zip(late, args, strict=True):
            t.copy_(value)
        output = deform_conv2d(*late, padding=1)
        grads = torch.ops.centermask.deform_conv2d_backward(output, *late[:4], PAIR, PAIR, PAIR, 1, [True] * 5)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(output, expected)
    direct = torch.ops.centermask.deform_conv2d_backward(expected, *args[:4], PAIR, PAIR, PAIR, 1, [True] * 5)
    for a, b in zip(grads, direct, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_training_step_in_a_graph(cuda: str, dtype: Any) -> None:
    args = [t.requires_grad_() for t in tensors(cuda, dtype, channels_last=True)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())

    def step() -> Any:
        output = deform_conv2d(*args, padding=1, activation="relu")
        return output, torch.autograd.grad(output.float().square().sum(), args)

    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, grads = step()
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for t in args:
                t.copy_(torch.randn(t.shape, generator=generator))
        graph.replay()
        expected, expected_grads = step()
        assert torch.equal(output, expected)
        for a, b in zip(grads, expected_grads, strict=True):
            error = (a.float() - b.float()).norm() / b.float().norm()
            assert error < (1e-5 if dtype == torch.float32 else 3e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast(cuda: str, half: Any) -> None:
    x, weight, offset, mask, bias = (t.requires_grad_() for t in tensors(cuda))
    with torch.autocast("cuda", half):
        output = deform_conv2d(x, weight, offset, mask, bias, padding=1)
    assert output.dtype == half
    # The places are not rounded to half precision.
    expected = deform_conv2d(x.to(half), weight.to(half), offset, mask, bias.to(half), padding=1)
    assert torch.equal(output, expected)
    output.float().sum().backward()
    for t in (x, weight, offset, mask, bias):
        assert t.grad.dtype == torch.float32
        assert t.grad.isfinite().all()
    # Half-precision places beside a half-precision x, as a layer in front may give them.
    with torch.autocast("cuda", half), torch.no_grad():
        again = deform_conv2d(x.to(half), weight, offset.to(half), mask.to(half), bias, padding=1)
    assert again.dtype == half


@pytest.mark.cuda
def test_a_layer_trains_under_autocast(cuda: str) -> None:
    torch.manual_seed(0)
    layer = DeformConvPack(8, 8, 3, padding=1, activation="relu").to(cuda)
    x = torch.randn(4, 8, 16, 16, device=cuda)
    target = torch.randn(4, 8, 16, 16, device=cuda).relu()
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", torch.float16):
            loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.cuda
@pytest.mark.parametrize("channels_last", [False, True])
def test_compile(cuda: str, channels_last: bool) -> None:
    torch.manual_seed(0)
    layer = DeformConvPack(6, 4, 3, padding=1, activation="relu").to(cuda)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(2, 6, 8, 9, device=cuda)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.float16, enabled=channels_last):
        expected, actual = twin(x), compiled(x)
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
    actual.float().square().sum().backward()
    expected.float().square().sum().backward()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_opcheck(cuda: str, channels_last: bool, dtype: Any) -> None:
    args = tensors(cuda, dtype, channels_last)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    forward = torch.ops.centermask.deform_conv2d.default
    backward = torch.ops.centermask.deform_conv2d_backward.default
    torch.library.opcheck(forward, (*args, PAIR, PAIR, PAIR, 1, "relu"), test_utils=tests)
    grad = torch.randn(2, 24, 12, 10, device=cuda, dtype=dtype)
    needs = [True, False, True, True, False]
    torch.library.opcheck(backward, (grad, *args[:4], PAIR, PAIR, PAIR, 1, needs), test_utils=tests)


@pytest.mark.cuda
def test_ddp(cuda: str, tmp_path: Path) -> None:
    if not torch.distributed.is_nccl_available():
        pytest.skip("PyTorch was built without NCCL")
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        layer = DeformConvPack(4, 4, 3, padding=1).to(cuda)
        twin = copy.deepcopy(layer)
        parallel = torch.nn.parallel.DistributedDataParallel(layer, device_ids=[0])
        x = torch.randn(2, 4, 8, 8, device=cuda)
        parallel(x).square().sum().backward()
        twin(x).square().sum().backward()
        for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.cuda
def test_wrong_places_and_types(cuda: str) -> None:
    x, weight, offset, mask, bias = tensors(cuda)
    with pytest.raises(ValueError, match=r"deform_conv2d: offset must be on the device of x \(cuda:0\), got cpu"):
        deform_conv2d(x, weight, offset.cpu(), mask, bias, padding=1)
    with pytest.raises(ValueError, match=r"deform_conv2d: bias must be on the device of x \(cuda:0\), got cpu"):
        deform_conv2d(x, weight, offset, mask, bias.cpu(), padding=1)
    with pytest.raises(ValueError, match=r"must be on the device of x \(cpu\), got cuda:0"):
        deform_conv2d(x.cpu(), weight, offset, mask, bias, padding=1)
    with pytest.raises(TypeError, match="float64"):
        deform_conv2d(*(t.double() for t in (x, weight, offset, mask, bias)), padding=1)
    with pytest.raises(TypeError, match="weight must be float16 as x is, got float32"):
        deform_conv2d(x.half(), weight, offset, mask, bias.half(), padding=1)
    with pytest.raises(ValueError, match=r"offset must be \[N=2, 2\*groups\*kh\*kw=18, 10, 8\], got \[2, 18, 12, 10\]"):
        deform_conv2d(x, weight, offset, mask, bias)
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\]"):
        deform_conv2d(x[0], weight, offset, mask, bias)
    with pytest.raises(ValueError, match="stride must be >= 1"):
        deform_conv2d(x, weight, offset, mask, bias, stride=0)


def test_shapes_and_layouts_need_no_device() -> None:
    """What torch.compile works with."""
    with FakeTensorMode():
        x = torch.empty(2, 16, 12, 10, device="cuda", dtype=torch.float16)
        weight = torch.empty(24, 16, 3, 3, device="cuda", dtype=torch.float16)
        offset, mask = torch.empty(2, 18, 12, 10, device="cuda"), torch.empty(2, 9, 12, 10, device="cuda")
        for form in (torch.contiguous_format, torch.channels_last):
            args = (x.to(memory_format=form), weight, offset, mask)
            output = torch.ops.centermask.deform_conv2d(*args, None, PAIR, PAIR, PAIR, 1, None)
            assert output.shape == (2, 24, 12, 10)
            assert (output.dtype, output.device.type) == (torch.float16, "cuda")
            assert output.is_contiguous(memory_format=form)
            grads = torch.ops.centermask.deform_conv2d_backward(
                output, *args, PAIR, PAIR, PAIR, 1, [True, True, True, True, False]
            )
            assert [tuple(g.shape) for g in grads] == [*(tuple(a.shape) for a in args), (0,)]
            assert [g.dtype for g in grads[:4]] == [a.dtype for a in args]
            assert grads[0].is_contiguous(memory_format=form)


@pytest.mark.skipif(_core.has_cuda, reason="centermask was built with CUDA")
def test_without_cuda_the_error_says_how_to_build_with_it() -> None:
    from centermask.nn import _deform_conv_ops

    with pytest.raises(NotImplementedError, match=r"pip install \. -Ccmake.define.CENTERMASK_CUDA=ON"):
        _deform_conv_ops._forward_cuda(*tensors("cpu"), PAIR, PAIR, PAIR, 1, None)
