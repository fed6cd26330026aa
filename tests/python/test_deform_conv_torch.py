"""centermask.nn's deformable convolution as a citizen of PyTorch: autograd, autocast, compile, export, workers."""

from __future__ import annotations

import copy
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from centermask import ops  # noqa: E402
from centermask.nn import DeformConv2d, DeformConvPack, deform_conv2d  # noqa: E402


def tensors(dtype: Any, *, groups: int = 1, offset_groups: int = 1, grad: bool = True) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    made = (
        normal(2, 12, 5, 4),
        normal(6, 12 // groups, 3, 3) / 8,
        normal(2, 18 * offset_groups, 5, 4),
        torch.rand(2, 9 * offset_groups, 5, 4, generator=generator, dtype=dtype),
        normal(6),
    )
    return tuple(t.requires_grad_(grad) for t in made)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 3)])
def test_gradcheck(activation: str | None, groups: int, offset_groups: int) -> None:
    # A random direction of all gradients: the offsets are random, so no sample sits on a kink.
    assert torch.autograd.gradcheck(
        lambda *args: deform_conv2d(*args, padding=1, groups=groups, activation=activation),
        tensors(torch.float64, groups=groups, offset_groups=offset_groups),
        fast_mode=True,
    )


def test_gradcheck_of_each_element() -> None:
    x, weight, offset, _, _ = tensors(torch.float64)
    args = [t.detach().clone().requires_grad_() for t in (x[:1, :3, :3, :3], weight[:2, :3], offset[:1, :, :2, :2])]
    assert torch.autograd.gradcheck(lambda *a: deform_conv2d(*a, stride=2, padding=1), args)


def test_is_the_operation_of_the_core() -> None:
    args = tensors(torch.float32, grad=False)
    expected = ops.deform_conv2d(*args, padding=1, activation="relu")
    actual = deform_conv2d(*args, padding=1, activation="relu")
    np.testing.assert_array_equal(actual.numpy(), expected)
    # Tensors of any layout, too.
    x = args[0].to(memory_format=torch.channels_last)
    assert torch.equal(deform_conv2d(x, *args[1:], padding=1, activation="relu"), actual)


def test_gradients_only_where_wanted() -> None:
    x, weight, offset, mask, bias = tensors(torch.float32)
    full = torch.autograd.grad(deform_conv2d(x, weight, offset, mask, bias, padding=1).sum(), (weight, bias))
    output = deform_conv2d(x.detach(), weight, offset.detach(), mask.detach(), bias, padding=1)
    some = torch.autograd.grad(output.sum(), (weight, bias))
    assert all(torch.equal(a, b) for a, b in zip(full, some, strict=True))
    output = deform_conv2d(x, weight.detach(), offset.detach(), padding=1)
    assert torch.autograd.grad(output.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("activation", [None, "relu"])
def test_opcheck(activation: str | None) -> None:
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    args = tensors(torch.float32)
    torch.library.opcheck(torch.ops.centermask.deform_conv2d.default, (*args, *geometry, activation))
    grad = torch.randn(2, 6, 5, 4)
    needs = [True, False, True, True, False]
    args = [t.detach() for t in args[:4]]
    torch.library.opcheck(torch.ops.centermask.deform_conv2d_backward.default, (grad, *args, *geometry, needs))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(half: Any) -> None:
    x, weight, offset, mask, bias = tensors(torch.float32)
    with torch.autocast("cpu", half):
        output = deform_conv2d(x.to(half), weight, offset, mask.to(half), bias, padding=1)
    assert output.dtype == torch.float32
    expected = deform_conv2d(x.to(half).float(), weight, offset, mask.to(half).float(), bias, padding=1)
    assert torch.equal(output, expected)
    output.sum().backward()
    assert x.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="float32 or float64 on the CPU"):
        deform_conv2d(x.to(half), weight, offset)


def test_compile_without_graph_breaks() -> None:
    layer = DeformConvPack(6, 4, 3, padding=1, activation="relu")
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 8, 9)
    expected = twin(x)
    actual = compiled(x)
    torch.testing.assert_close(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_export_with_dynamic_shapes() -> None:
    layer = DeformConvPack(6, 4, 3, stride=2, padding=1)
    dim = torch.export.Dim
    shapes = {"x": {0: dim("n"), 2: dim("h", min=4), 3: dim("w", min=4)}}
    program = torch.export.export(layer, (torch.randn(2, 6, 8, 10),), dynamic_shapes=shapes)
    assert any(node.target == torch.ops.centermask.deform_conv2d.default for node in program.graph.nodes)
    x = torch.randn(3, 6, 13, 17)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_pack_starts_as_a_plain_convolution_at_half_weight() -> None:
    layer = DeformConvPack(5, 7, 3, stride=2, padding=1, dilation=1)
    x = torch.randn(2, 5, 9, 8)
    half = torch.nn.functional.conv2d(x, layer.weight * 0.5, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), half, rtol=0, atol=1e-5)


def test_pack_layout_is_offsets_then_mask_logits() -> None:
    layer = DeformConvPack(4, 3, 3, padding=1, offset_groups=2)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (3, 4, 3, 3),
        "bias": (3,),
        "conv_offset.weight": (54, 4, 3, 3),
        "conv_offset.bias": (54,),
    }
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(1, 4, 6, 6)
    predicted = layer.conv_offset(x)
    expected = ops.deform_conv2d(x, layer.weight, predicted[:, :36], predicted[:, 36:].sigmoid(), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), torch.from_numpy(expected))
    layer(x).square().sum().backward()
    assert layer.conv_offset.weight.grad.abs().min(dim=0).values.sum() > 0


def test_places_are_float32_under_autocast() -> None:
    layer = DeformConvPack(4, 3, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        offset, mask = layer.places(torch.randn(1, 4, 6, 6))
        assert offset.dtype == mask.dtype == torch.float32
        torch.nn.init.normal_(layer.conv_offset.weight)
        x = torch.randn(1, 4, 6, 6)
        offset, _ = layer.places(x)
        with torch.autocast("cpu", enabled=False):
            torch.testing.assert_close(offset, layer.places(x)[0], rtol=0, atol=0)  # not rounded on the way
        assert layer(torch.randn(1, 4, 6, 6)).dtype == torch.float32


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="DeformConv2d: groups=2 must divide in_channels=3"):
        DeformConv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="DeformConvPack: offset_groups=2 must divide in_channels=3"):
        DeformConvPack(3, 4, 3, offset_groups=2)
    with pytest.raises(ValueError, match="activation must be None or 'relu'"):
        DeformConv2d(3, 4, 3, activation="gelu")
    x, weight, offset, mask, bias = tensors(torch.float32)
    with pytest.raises(ValueError, match=r"deform_conv2d: offset must be \[N=2, 2\*groups\*kh\*kw=18, 3, 2\]"):
        deform_conv2d(x, weight, offset, mask, bias)


def _in_child(queue: Any) -> None:
    x, weight, offset, mask, bias = tensors(torch.float32)
    output = deform_conv2d(x, weight, offset, mask, bias, padding=1)
    output.sum().backward()
    queue.put((output.detach().numpy(), weight.grad.numpy()))


def forked_workers_agree() -> None:
    torch.set_num_threads(2)
    x, weight, offset, mask, bias = tensors(torch.float32)
    output = deform_conv2d(x, weight, offset, mask, bias, padding=1)  # the parent's threads exist before the fork
    output.sum().backward()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_in_child, args=(queue,))
    worker.start()
    result, grad = queue.get(timeout=60)
    worker.join(60)
    assert worker.exitcode == 0
    np.testing.assert_array_equal(result, output.detach().numpy())
    np.testing.assert_array_equal(grad, weight.grad.numpy())


def test_forked_workers() -> None:
    # In a process of its own: PyTorch refuses to differentiate after a fork once its own threads for that have run, as
    # some other test's gradients may have made them.
    command = [sys.executable, "-c", "import test_deform_conv_torch as t; t.forked_workers_agree()"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
