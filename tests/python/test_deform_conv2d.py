"""deform_conv2d of the core against plain loops in float64, torchvision and ONNX Runtime, on every instruction set."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from deform_problems import ISAS, Problem, instruction_set, make_problem, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask import ops

# Rounding of sums of up to a few thousand products of size about 1 (float32: eps 6e-8, float64: 1e-16).
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups, offset_groups = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 3), (3, 2)]))
    both = int(np.lcm(groups, offset_groups))
    c = both * draw(st.sampled_from([1, 3, 17] if both > 1 else [1, 3, 17, 65]))
    kernel = draw(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])))
    pairs = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    }
    least = [max(1, pairs["dilation"][i] * (kernel[i] - 1) + 1 - 2 * pairs["padding"][i]) for i in range(2)]
    h, w = (draw(st.integers(low, low + 4)) for low in least)
    return make_problem(
        draw(st.integers(0, 2)), c, h, w, groups * draw(st.sampled_from([1, 5, 33])), kernel, **pairs, groups=groups,
        offset_groups=offset_groups, mask=draw(st.booleans()), bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float64"])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def strided(array: np.ndarray | None, how: str) -> np.ndarray | None:
    """The same values in another memory layout."""
    if array is None or how == "plain":
        return array
    if how == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if how == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1) if array.ndim > 1 else array
    return np.repeat(array, 2, axis=-1)[..., ::2]


@pytest.mark.parametrize("isa", ISAS)
@given(
    p=problems(),
    threads=st.sampled_from([1, 2]),
    layout=st.sampled_from(["plain", "reversed", "channels_last", "gaps"]),
    relu=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_equals_plain_loops(isa: str, p: Problem, threads: int, layout: str, relu: bool) -> None:
    activation = "relu" if relu else None
    expected = np.maximum(reference(p), 0) if relu else reference(p)
    with instruction_set(isa):
        args = [strided(a, layout) for a in p.tensors]
        actual = ops.deform_conv2d(*args, **p.geometry, activation=activation, threads=threads)
        packed = ops.PackedDeformConv2d(args[1], args[4], **p.geometry, activation=activation, threads=threads)
        again = packed(args[0], args[2], args[3])
    assert actual.dtype == p.x.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[p.x.dtype.name])
    np.testing.assert_array_equal(again, actual)


SHAPES = {
    "neck": lambda dtype: make_problem(3, 96, 20, 20, 64, (3, 3), padding=(1, 1), dtype=dtype),
    "stride 2, groups": lambda dtype: make_problem(
        2, 24, 19, 23, 40, (3, 3), stride=(2, 2), padding=(1, 1), groups=4, offset_groups=3, dtype=dtype
    ),
    "5x5, dilation": lambda dtype: make_problem(
        1, 65, 16, 11, 34, (5, 5), padding=(4, 2), dilation=(2, 1), mask=False, bias=False, dtype=dtype
    ),
    "1x1, one channel": lambda dtype: make_problem(5, 1, 6, 1, 1, (1, 1), dtype=dtype),
    # More out channels than sums are kept of, more taps and channels than are sampled together.
    "wide": lambda dtype: make_problem(1, 6, 4, 5, 2100, (3, 3), padding=(1, 1), dtype=dtype),
    "7x7": lambda dtype: make_problem(1, 84, 9, 8, 5, (7, 7), padding=(3, 3), dtype=dtype),
    "whole offsets": lambda dtype: make_problem(2, 16, 7, 9, 8, (3, 3), padding=(1, 1), dtype=dtype, spread=0.0),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torchvision(isa: str, dtype: str, shape: str) -> None:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    p = SHAPES[shape](dtype)
    x, weight, offset, mask, bias = (None if a is None else torch.tensor(a, requires_grad=True) for a in p.tensors)
    expected = torchvision.ops.deform_conv2d(
        x, offset, weight, bias, *(p.geometry[name] for name in ("stride", "padding", "dilation")), mask
    )
    grad = np.random.default_rng(7).standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.tensor(grad))
    with instruction_set(isa):
        np.testing.assert_allclose(
            ops.deform_conv2d(*p.tensors, **p.geometry), expected.detach(), rtol=0, atol=TOLERANCE[dtype]
        )
        for threads in (1, 2):
            gradients = ops.deform_conv2d_backward(grad, *p.tensors, **p.geometry, threads=threads)
            for actual, tensor in zip(gradients, (x, weight, offset, mask, bias), strict=True):
                if tensor is None:
                    assert actual is None
                    continue
                # Gradients are sums over up to 1200 positions: their size sets the rounding.
                scale = max(1.0, float(tensor.grad.abs().max()))
                np.testing.assert_allclose(actual, tensor.grad, rtol=0, atol=scale * TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_onnx_runtime(shape: str) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    p = SHAPES[shape]("float32")
    # ONNX orders the inputs X, W, offset, B, mask.
    names = ["X", "W", "offset", "B", "mask"]
    arrays = dict(zip(names, (p.x, p.weight, p.offset, p.bias, p.mask), strict=True))
    node = onnx.helper.make_node(
        "DeformConv",
        [name if arrays[name] is not None else "" for name in names],
        ["Y"],
        strides=p.geometry["stride"],
        pads=p.geometry["padding"] * 2,
        dilations=p.geometry["dilation"],
        group=p.geometry["groups"],
        offset_group=p.offset.shape[1] // (2 * p.weight.shape[2] * p.weight.shape[3]),
    )
    values = {name: a for name, a in arrays.items() if a is not None}
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, a.shape) for name, a in values.items()],
        [onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, [None] * 4)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    try:
        session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except runtime.capi.onnxruntime_pybind11_state.NotImplemented:
        pytest.skip("this ONNX Runtime has no DeformConv (it came with 1.25)")
    (expected,) = session.run(None, values)
    np.testing.assert_allclose(ops.deform_conv2d(*p.tensors, **p.geometry), expected, rtol=0, atol=TOLERANCE["float32"])


@pytest.mark.parametrize("needs", [(True,) * 5, (False, True, False, False, True)])
def test_gradients_of_an_empty_batch(needs: tuple[bool, ...]) -> None:
    """Planning the work of no image at all once divided by zero, which ended the process."""
    x, offset, mask = (np.zeros((0, c, 6, 5), np.float32) for c in (4, 18, 9))
    weight, bias = np.ones((3, 4, 3, 3), np.float32), np.ones(3, np.float32)
    grad = np.zeros((0, 3, 6, 5), np.float32)
    gradients = ops.deform_conv2d_backward(grad, x, weight, offset, mask, bias, padding=1, needs=needs)
    for needed, gradient, tensor in zip(needs, gradients, (x, weight, offset, mask, bias), strict=True):
        assert (gradient is not None) == needed
        if gradient is not None:
            np.testing.assert_array_equal(gradient, np.zeros_like(tensor))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 1e6])
def test_samples_far_outside_count_as_zero(isa: str, bad: float) -> None:
    p = make_problem(2, 17, 6, 5, 7, (3, 3), padding=(1, 1), dtype="float32")
    far = np.random.default_rng(1).uniform(size=(2, 9, 6, 5)) < 0.3
    # Either coordinate, or both.
    p.offset.reshape(2, 9, 2, 6, 5)[:, :, 0][far] = bad
    p.offset.reshape(2, 9, 2, 6, 5)[:, ::2, 1][far[:, ::2]] = bad
    zeroed = make_problem(2, 17, 6, 5, 7, (3, 3), padding=(1, 1), dtype="float32")
    zeroed.mask[far] = 0
    grad = np.ones((2, 7, 6, 5), np.float32)
    with instruction_set(isa):
        actual, expected = (ops.deform_conv2d(*q.tensors, **q.geometry) for q in (p, zeroed))
        np.testing.assert_array_equal(actual, expected)
        g, h = (ops.deform_conv2d_backward(grad, *q.tensors, **q.geometry) for q in (p, zeroed))
    for which in (0, 1, 4):
        np.testing.assert_array_equal(g[which], h[which])
    by_offset, by_mask = g[2].reshape(2, 9, 2, 6, 5), g[3]
    assert not by_offset.transpose(0, 1, 3, 4, 2)[far].any()
    assert not by_mask[far].any()
    np.testing.assert_array_equal(by_mask[~far], h[3][~far])


def test_infinite_pixels_do_not_leak_from_beyond_the_border() -> None:
    x = np.full((1, 1, 4, 4), np.inf, np.float32)
    offset = np.full(
        (1, 2, 4, 4), -1.0, np.float32
    )  # row and column 0 sample at -1: outside, next to an infinite pixel
    actual = ops.deform_conv2d(x, np.ones((1, 1, 1, 1), np.float32), offset)
    assert not actual[0, 0, 0].any()
    assert not actual[0, 0, :, 0].any()


@pytest.mark.parametrize("isa", ISAS)
def test_threads_do_not_change_results(isa: str) -> None:
    p = make_problem(3, 48, 13, 21, 40, (3, 3), padding=(1, 1))
    grad = np.random.default_rng(3).standard_normal((3, 40, 13, 21)).astype(np.float32)
    with instruction_set(isa):
        alone = ops.deform_conv2d(*p.tensors, **p.geometry, threads=1)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(ops.deform_conv2d(*p.tensors, **p.geometry, threads=threads), alone)
            first = ops.deform_conv2d_backward(grad, *p.tensors, **p.geometry, threads=threads)
            for _ in range(3):
                again = ops.deform_conv2d_backward(grad, *p.tensors, **p.geometry, threads=threads)
                for a, b in zip(first, again, strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
def test_a_batch_is_its_images(isa: str) -> None:
    """Of large images only some are held at once."""
    p = make_problem(5, 48, 50, 60, 20, (3, 3), padding=(1, 1))
    with instruction_set(isa):
        for threads in (1, 2):
            whole = ops.deform_conv2d(*p.tensors, **p.geometry, threads=threads)
            for i in range(5):
                one = (p.x[i : i + 1], p.weight, p.offset[i : i + 1], p.mask[i : i + 1], p.bias)
                np.testing.assert_array_equal(ops.deform_conv2d(*one, **p.geometry, threads=threads), whole[i : i + 1])


def test_float32_offsets_with_float64_data() -> None:
    p = make_problem(1, 5, 6, 7, 3, (3, 3), padding=(1, 1), dtype="float64")
    p.offset, p.mask = p.offset.astype(np.float32), p.mask.astype(np.float32)
    np.testing.assert_allclose(ops.deform_conv2d(*p.tensors, **p.geometry), reference(p), rtol=0, atol=1e-12)
    gradients = ops.deform_conv2d_backward(np.ones((1, 3, 6, 7)), *p.tensors, **p.geometry)
    assert [g.dtype.name for g in gradients] == ["float64", "float64", "float32", "float32", "float64"]


def test_broadcast_grad_output_and_wanted_gradients() -> None:
    p = make_problem(2, 5, 6, 7, 3, (3, 3), padding=(1, 1))
    flat = np.broadcast_to(np.float32(0.5), (2, 3, 6, 7))
    every = ops.deform_conv2d_backward(np.ascontiguousarray(flat), *p.tensors, **p.geometry)
    for i in range(5):
        needs = [j == i for j in range(5)]
        some = ops.deform_conv2d_backward(flat, *p.tensors, **p.geometry, needs=needs)
        np.testing.assert_array_equal(some[i], every[i])
        assert [g is not None for g in some] == needs


def test_geometry_is_whole_numbers() -> None:
    p = make_problem(1, 4, 6, 7, 3, (3, 3), stride=(2, 2))
    np.testing.assert_array_equal(
        ops.deform_conv2d(*p.tensors, stride=np.int64(2)), ops.deform_conv2d(*p.tensors, stride=(2, 2))
    )
    for wrong in (1.5, (2.9, 2.9), "ab", None):
        with pytest.raises(TypeError, match="deform_conv2d: stride must be an int or two of them, got "):
            ops.deform_conv2d(*p.tensors, stride=wrong)


@pytest.mark.parametrize("threads", [-1, 4097, 200_000])
def test_number_of_threads_is_checked(threads: int) -> None:
    p = make_problem(1, 4, 6, 7, 3, (3, 3))
    with pytest.raises(ValueError, match=f"threads must be 1..4096, or None for one for each core, got {threads}"):
        ops.deform_conv2d(*p.tensors, threads=threads)


def test_callers_on_many_threads() -> None:
    p = make_problem(1, 32, 17, 15, 24, (3, 3), padding=(1, 1))
    alone = ops.deform_conv2d(*p.tensors, **p.geometry, threads=1)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: ops.deform_conv2d(*p.tensors, **p.geometry, threads=1 + i % 3), range(40)))
    for result in results:
        np.testing.assert_array_equal(result, alone)


def test_dlpack_tensors_come_in_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    from centermask._arrays import as_array

    p = make_problem(1, 4, 6, 6, 3, (3, 3), padding=(1, 1))
    tensors = [torch.tensor(a, requires_grad=True) for a in p.tensors]
    np.testing.assert_array_equal(
        ops.deform_conv2d(*tensors, **p.geometry), ops.deform_conv2d(*p.tensors, **p.geometry)
    )
    assert as_array(tensors[0], "op", "x").ctypes.data == tensors[0].data_ptr()
    with pytest.raises(TypeError, match=r"deform_conv2d: x .*bfloat16"):
        ops.deform_conv2d(tensors[0].bfloat16(), *tensors[1:], **p.geometry)
    with pytest.raises(TypeError, match="deform_conv2d: weight must be a NumPy array or a DLPack tensor, got list"):
        ops.deform_conv2d(tensors[0], [1, 2], *tensors[2:], **p.geometry)


def test_errors_name_argument_expected_and_got() -> None:
    p = make_problem(2, 4, 64, 64, 3, (3, 3), padding=(1, 1))
    x, weight, offset, mask, bias = p.tensors
    same = {"padding": 1}
    with pytest.raises(ValueError, match=r"offset must be \[N=2, 2\*groups\*kh\*kw=18, 64, 64\], got \[2, 9, 64, 64\]"):
        ops.deform_conv2d(x, weight, offset[:, :9], mask, bias, **same)
    with pytest.raises(ValueError, match=r"mask must be \[N=2, groups\*kh\*kw=9, 64, 64\], got \[1, 9, 64, 64\]"):
        ops.deform_conv2d(x, weight, offset, mask[:1], bias, **same)
    with pytest.raises(ValueError, match=r"bias must be \[3\], got \[2\]"):
        ops.deform_conv2d(x, weight, offset, mask, bias[:2], **same)
    with pytest.raises(TypeError, match="weight must be float32 as x is, got float64"):
        ops.deform_conv2d(x, weight.astype(np.float64), offset, mask, bias, **same)
    with pytest.raises(TypeError, match="offset must be float32 as x is, got float64"):
        ops.deform_conv2d(x, weight, offset.astype(np.float64), mask, bias, **same)
    with pytest.raises(TypeError, match="x must be float32 or float64 on the CPU, got float16"):
        ops.deform_conv2d(*(a.astype(np.float16) for a in (x, weight, offset)), **same)
    with pytest.raises(ValueError, match="stride must be an int or two of them"):
        ops.deform_conv2d(x, weight, offset, stride=(1, 1, 1), **same)
    with pytest.raises(ValueError, match=r"activation must be None or 'relu', got 'tanh'"):
        ops.deform_conv2d(x, weight, offset, activation="tanh", **same)
    with pytest.raises(ValueError, match=r"grad_output must be \[2, 3, 64, 64\], got \[2, 4, 64, 64\]"):
        ops.deform_conv2d_backward(x, x, weight, offset, **same)
    with instruction_set(ISAS[-1]):
        os.environ["CENTERMASK_ISA"] = "sse9"
        with pytest.raises(ValueError, match="CENTERMASK_ISA must be baseline, avx2 or avx512, got sse9"):
            ops.deform_conv2d(x, weight, offset, **same)


@pytest.mark.skipif(len(ISAS) < 2, reason="one instruction set only")
def test_packed_weights_belong_to_an_instruction_set() -> None:
    p = make_problem(1, 4, 6, 6, 3, (3, 3), padding=(1, 1))
    with instruction_set(ISAS[0]):
        packed = ops.PackedDeformConv2d(p.weight, p.bias, **p.geometry)
    with instruction_set(ISAS[1]), pytest.raises(ValueError, match="packed weight was made for another shape, p"):
        packed(p.x, p.offset, p.mask)
