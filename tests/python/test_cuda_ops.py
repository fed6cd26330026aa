"""The other operations on CUDA arrays against the CPU, and CuPy's arrays in all of them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from cuda_cases import BY_NAME, DEVICES, skip_without
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masks import THRESHOLD, TIE, loop_values, make_case

torch = pytest.importorskip("torch")

from centermask import ops  # noqa: E402

HALF = [torch.float32, torch.float16, torch.bfloat16]
LOGITS = [-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, float("inf"), -float("inf"), float("nan")]


def on(device: str, array: Any) -> Any:
    return None if array is None else torch.as_tensor(array).to(device)


def host(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.cpu().numpy()


def check_decode(device: str, heatmap: Any, top_k: int, threshold: float) -> None:
    expected = ops.decode_centers(heatmap.float(), top_k, threshold)
    actual = ops.decode_centers(heatmap.to(device), top_k, threshold)
    if device == "cuda":
        assert all(a.is_cuda for a in actual)
    for name in ("labels", "index", "count"):
        np.testing.assert_array_equal(host(getattr(actual, name)), getattr(expected, name), err_msg=name)
    # Both are computed in double and rounded once; exp() of two libraries may differ in its last bit.
    np.testing.assert_allclose(host(actual.scores), expected.scores, rtol=1.2e-7, atol=1e-45)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("shape", "top_k"), [((2, 80, 128, 128), 100), ((16, 3, 33, 65), 7), ((1, 1, 1, 1), 5), ((0, 2, 4, 4), 3)]
)
@pytest.mark.parametrize("quantum", [0.0, 0.5], ids=["distinct", "ties"])
def test_decode(device: str, dtype: Any, shape: tuple[int, ...], top_k: int, quantum: float) -> None:
    skip_without(device)
    if device == "cpu" and dtype != torch.float32:
        pytest.skip("the CPU takes float32 and float64")
    heatmap = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 - 4
    if quantum:
        heatmap = (heatmap / quantum).round() * quantum
    for threshold in (0.0, 0.1):
        check_decode(device, heatmap.to(dtype), top_k, threshold)
    strided = heatmap.to(dtype).transpose(2, 3)
    check_decode(device, strided, top_k, 0.0)
    check_decode(device, heatmap.to(dtype).contiguous(memory_format=torch.channels_last), top_k, 0.3)


@pytest.mark.parametrize("device", DEVICES)
def test_decode_of_extremes(device: str) -> None:
    skip_without(device)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        shape = tuple(data.draw(st.integers(low, high)) for low, high in [(0, 3), (1, 4), (1, 7), (1, 9)])
        size = int(np.prod(shape))
        values = data.draw(st.lists(st.sampled_from(LOGITS), min_size=size, max_size=size))
        heatmap = torch.tensor(values, dtype=torch.float32).reshape(shape)
        check_decode(
            device, heatmap, data.draw(st.sampled_from([1, 2, 5, 300])), data.draw(st.sampled_from([0.0, 0.5, 1.0]))
        )

    run()
    flat = torch.zeros(2, 3, 64, 64)  # everything is a peak, and all of them are equal
    check_decode(device, flat, 1000, 0.0)
    check_decode(device, torch.full((1, 2, 8, 8), float("nan")), 4, 0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF)
def test_gather(device: str, dtype: Any) -> None:
    skip_without(device)
    if device == "cpu" and dtype != torch.float32:
        pytest.skip("the CPU takes float32 and float64")
    generator = torch.Generator().manual_seed(0)
    for n, channels, height, width, k in [(2, 64, 17, 13, 100), (3, 5, 1, 1, 4), (0, 3, 4, 4, 2), (1, 8, 6, 5, 0)]:
        features = torch.randn(n, channels, height, width, generator=generator).to(dtype)
        index = torch.randint(-2, height * width + 2, (n, k), generator=generator)
        if k:
            index[:, 0] = torch.iinfo(torch.int64).max
        expected = torch.from_numpy(ops.gather_patches(features.float(), index)).to(dtype)
        for form in (torch.contiguous_format, torch.channels_last):
            actual = ops.gather_patches(features.to(device, memory_format=form), index.to(device))
            assert torch.equal(torch.as_tensor(actual).cpu(), expected)  # copies: not one bit may differ


@pytest.mark.parametrize("device", DEVICES)
def test_preprocess(device: str) -> None:
    skip_without(device)
    rng = np.random.default_rng(0)
    scale = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
    for size, matrix, out_size in [
        ((97, 131), [[0.7, 0, 3.25], [0, 0.7, -2]], (64, 96)),
        ((1, 1), [[20, 0, 1], [0, -20, 30]], (32, 31)),
        ((40, 50), [[1, 0, 0], [0, 1, 0]], (40, 50)),
        ((40, 50), [[1, 0, 1e9], [0, 1, 0]], (8, 8)),
    ]:
        image = torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        for view in (image, image.flip(0, 1), image.transpose(0, 1).contiguous().transpose(0, 1)):
            expected = ops.preprocess(view.numpy(), matrix, out_size, swap_channels=True, **scale)
            actual = ops.preprocess(view.to(device), matrix, out_size, swap_channels=True, **scale)
            # Grey levels of up to 255 in float32, some roundings each.
            np.testing.assert_allclose(host(actual), expected, rtol=0, atol=1e-5)
    if device == "cuda":
        out = torch.empty((3, 40, 50), dtype=torch.float16, device=device)
        given_back = ops.preprocess(image.to(device), np.eye(2, 3), (40, 50), out=out, **scale)
        assert given_back is out
        expected = ops.preprocess(image.numpy(), np.eye(2, 3), (40, 50), **scale)
        np.testing.assert_allclose(host(out).astype(float), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head", ["dynamic", "shape"])
@pytest.mark.parametrize("classes", [1, 3])
def test_masks(device: str, head: str, classes: int) -> None:
    skip_without(device)
    features, params, boxes = make_case(np.random.default_rng(1), head, 7, 17, 23, classes)
    labels = np.array([0, 2, 1, -1, 0, 1, 2]) if head == "shape" and classes > 1 else None
    boxes[5] = np.nan
    arguments: dict[str, Any] = {
        "head": head, "image_size": (61, 93), "image_to_input": np.array([[0.9, 0, 2], [0, 1.1, -1]]),
    }  # fmt: skip
    expected = ops.assemble_masks(features, params, boxes, labels=labels, **arguments)
    tensors = [on(device, a) for a in (features, params, boxes)]
    outputs = {
        output: ops.assemble_masks(*tensors, labels=on(device, labels), output=output, **arguments)
        for output in ("rle", "bitmap", "polygon", "packed")
    }
    inside = ties = 0
    packed = host(outputs["packed"])
    assert packed.shape == (7, 61, 12)
    for i, mask in enumerate(expected):
        actual = ops.rle_decode(outputs["rle"][i])
        assert ops.rle_encode(actual) == outputs["rle"][i]  # canonical
        wanted = ops.rle_decode(mask)
        inside += int(wanted.sum())
        different = actual != wanted
        if different.any():
            values = loop_values(
                features, params[i], boxes[i], head, (61, 93), arguments["image_to_input"], 4, 0.1,
                -1 if labels is None else int(labels[i]),
            )  # fmt: skip
            assert (np.abs(values[different] - THRESHOLD[head]) < TIE).all()
            ties += int(different.sum())
        x, y, crop = outputs["bitmap"][i]
        whole = np.zeros((61, 93), bool)
        whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        np.testing.assert_array_equal(whole, actual)
        np.testing.assert_array_equal(np.unpackbits(packed[i], axis=1, bitorder="little")[:, :93], actual)
        assert bool(outputs["polygon"][i]) == bool(actual.any())
    assert inside > 1000
    assert ties <= inside / 1000


@pytest.mark.cuda
def test_masks_with_more_runs_than_guessed() -> None:
    skip_without("cuda")
    # Each pixel column of the stretched noise has many runs.
    features, params, boxes = make_case(np.random.default_rng(2), "dynamic", 3, 200, 4)
    boxes[:] = [0, 0, 16, 800]
    params[:, :80] *= 20
    arguments: dict[str, Any] = {"image_size": (800, 16)}
    expected = ops.assemble_masks(features, params, boxes, **arguments)
    actual = ops.assemble_masks(*(on("cuda", a) for a in (features, params, boxes)), **arguments)
    assert sum(len(ops.rle_to_counts(mask)) for mask in expected) > 3 * (2 * 16 + 16)
    differing = sum(int((ops.rle_decode(a) != ops.rle_decode(b)).sum()) for a, b in zip(actual, expected, strict=True))
    assert differing <= 800 * 16 * 3 / 1000
    assert ops.assemble_masks(*(on("cuda", a[:0] if i else a) for i, a in enumerate((features, params, boxes))),
                              **arguments) == []  # fmt: skip


@pytest.mark.cuda
def test_all_but_run_lengths_can_be_captured() -> None:
    skip_without("cuda")
    heatmap = torch.randn(2, 5, 32, 32, device="cuda")
    features = torch.randn(2, 8, 32, 32, device="cuda")
    image = torch.randint(0, 256, (30, 40, 3), dtype=torch.uint8, device="cuda")
    mask_features, params, boxes = (on("cuda", a) for a in make_case(np.random.default_rng(0), "dynamic", 4, 12, 12))

    def step() -> tuple[Any, ...]:
        centers = ops.decode_centers(heatmap, 20)
        patches = ops.gather_patches(features, centers.index)
        tensor = ops.preprocess(image, np.eye(2, 3), (32, 32), mean=(0, 0, 0), std=(1, 1, 1))
        masks = ops.assemble_masks(mask_features, params, boxes, image_size=(48, 48), output="packed")
        return *centers, patches, tensor, masks

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for t in (heatmap, features, mask_features, params):
        t.normal_()
    image.random_(0, 256)
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.cuda
def test_run_lengths_from_a_graph() -> None:
    """The run lengths themselves: device memory alone, through the core."""
    skip_without("cuda")
    from centermask import _core

    capsule = torch.utils.dlpack.to_dlpack
    inputs = [on("cuda", a) for a in make_case(np.random.default_rng(0), "dynamic", 4, 12, 12)]
    runs = torch.empty(4096, dtype=torch.uint32, device="cuda")
    offsets = torch.empty(5, dtype=torch.int64, device="cuda")
    kept = []

    def allocate(size: int) -> tuple[int, Any]:
        kept.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        return kept[-1].data_ptr(), kept[-1]

    def step() -> None:
        _core.assemble_masks_cuda(
            *map(capsule, inputs), None, "dynamic", 48, 48, [1, 0, 0, 0, 1, 0], 4, 0.0, 0.1, capsule(runs),
            capsule(offsets), allocate, torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    inputs[1].neg_()
    graph.replay()
    expected = ops.assemble_masks(*inputs, image_size=(48, 48))
    bounds = offsets.tolist()
    counts = runs.cpu().numpy()
    for i, mask in enumerate(expected):
        assert counts[bounds[i] : bounds[i + 1]].tolist() == list(ops.rle_to_counts(mask))


@pytest.mark.cuda
def test_mixed_devices_and_types() -> None:
    skip_without("cuda")
    heatmap = torch.zeros(1, 1, 4, 4, device="cuda")
    index = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"index must be on the device of features \(cuda:0\), got cpu"):
        ops.gather_patches(heatmap, index)
    with pytest.raises(ValueError, match=r"index must be on the device of features \(cpu\), got cuda:0"):
        ops.gather_patches(heatmap.cpu().numpy(), index.cuda())
    with pytest.raises(TypeError, match="float64"):
        ops.decode_centers(heatmap.double(), 3)
    with pytest.raises(ValueError, match=r"heatmap must be \[N, C, H, W\], got \[1, 4, 4\]"):
        ops.decode_centers(heatmap[0], 3)
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        ops.decode_centers(heatmap, 0)
    features, params, boxes = (on("cuda", a) for a in make_case(np.random.default_rng(0), "dynamic", 2, 5, 5))
    with pytest.raises(ValueError, match=r"assemble_masks: boxes must be on"):
        ops.assemble_masks(features, params, boxes.cpu(), image_size=(8, 8))
    image = torch.zeros(4, 4, 3, dtype=torch.uint8, device="cuda")
    with pytest.raises(ValueError, match="preprocess: out must be on"):
        ops.preprocess(image, np.eye(2, 3), (4, 4), mean=(0,) * 3, std=(1,) * 3, out=np.empty((3, 4, 4), np.float32))


class OnlyInterface:
    """A tensor of a library that nobody knows, seen through `__cuda_array_interface__` alone."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__


class OnlyDlpack:
    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


@pytest.mark.cuda
@pytest.mark.parametrize("wrap", [OnlyInterface, OnlyDlpack])
def test_arrays_of_other_libraries(wrap: Any) -> None:
    skip_without("cuda")
    heatmap = torch.randn(2, 3, 9, 8, device="cuda")
    expected = ops.decode_centers(heatmap, 5)
    actual = ops.decode_centers(wrap(heatmap), 5)
    assert type(actual.scores).__module__.partition(".")[0] in ("torch", "cupy")
    np.testing.assert_array_equal(torch.as_tensor(actual.index, device="cuda").cpu(), expected.index.cpu())


@pytest.mark.cuda
def test_cupy_in_cupy_out() -> None:
    skip_without("cuda")
    cupy = pytest.importorskip("cupy")
    case = BY_NAME["groups and offset groups"]
    arrays = [None if a is None else a.astype(np.float32) for a in case.arrays()]
    expected = ops.deform_conv2d(*arrays[:5], **case.geometry)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        ours = [None if a is None else cupy.asarray(a) for a in arrays]
        output = ops.deform_conv2d(*ours[:5], **case.geometry)
        # Channels-last in, channels-last out.
        x = cupy.ascontiguousarray(ours[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        last = ops.deform_conv2d(x, *ours[1:5], **case.geometry)
        gradients = ops.deform_conv2d_backward(ours[5], *ours[:5], **case.geometry)
        heatmap = cupy.asarray(np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32))
        centers = ops.decode_centers(heatmap, 5)
        patches = ops.gather_patches(heatmap, centers.index)
        image = cupy.zeros((8, 9, 3), cupy.uint8)
        tensor = ops.preprocess(image, np.eye(2, 3), (8, 9), mean=(1, 2, 3), std=(1, 1, 1))
        features, params, boxes = make_case(np.random.default_rng(0), "dynamic", 4, 12, 12)
        masks = ops.assemble_masks(*map(cupy.asarray, (features, params, boxes)), image_size=(48, 48))
        packed = ops.assemble_masks(*map(cupy.asarray, (features, params, boxes)), image_size=(48, 48), output="packed")
    stream.synchronize()
    for result in (output, last, *gradients, *centers, patches, tensor, packed):
        assert isinstance(result, cupy.ndarray)
    np.testing.assert_allclose(output.get(), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(last.get(), expected, rtol=0, atol=2e-5)
    assert last.transpose(0, 2, 3, 1).flags.c_contiguous
    for a, b in zip(gradients, ops.deform_conv2d_backward(arrays[5], *arrays[:5], **case.geometry), strict=True):
        np.testing.assert_allclose(a.get(), b, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(centers.index.get(), ops.decode_centers(heatmap.get(), 5).index)
    assert (tensor.get() == -np.array([1, 2, 3], np.float32)[:, None, None]).all()
    assert len(masks) == len(ops.assemble_masks(features, params, boxes, image_size=(48, 48)))


def test_arrays_on_the_cpu_load_no_gpu_library() -> None:
    import subprocess

    code = (
        "import sys, numpy as np\nfrom centermask import ops\n"
        "ops.decode_centers(np.zeros((1, 1, 4, 4), np.float32), 3)\n"
        "assert not {'torch', 'cupy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
