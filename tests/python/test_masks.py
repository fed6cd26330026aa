"""Mask assembly against float64 plain loops."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from centermask import _core, ops

HEADS = ("dynamic", "shape")
TIE = 1e-5  # where |v - threshold| is smaller, float32 may fall on either side
THRESHOLD = {"dynamic": 0.0, "shape": 0.5}


def dynamic_value(features: np.ndarray, params: np.ndarray, box: np.ndarray, stride: int, i: int, j: int) -> float:
    size = max(box[2] - box[0], box[3] - box[1], stride)
    rel_x = 2 * (stride * (j + 0.5) - (box[0] + box[2]) / 2) / size
    rel_y = 2 * (stride * (i + 0.5) - (box[1] + box[3]) / 2) / size
    x = np.array([rel_x, rel_y, *features[:, i, j]])
    weight0, weight1, weight2, bias0, bias1, bias2 = np.split(params, [80, 144, 152, 160, 168])
    x = np.maximum(weight0.reshape(8, 10) @ x + bias0, 0)
    x = np.maximum(weight1.reshape(8, 8) @ x + bias1, 0)
    return float(weight2 @ x + bias2[0])


def shape_value(saliency: np.ndarray, params: np.ndarray, box: np.ndarray, stride: int, i: int, j: int) -> float:
    shape = params.reshape(32, 32)
    x = (stride * (j + 0.5) - box[0]) / (box[2] - box[0]) * 32 - 0.5
    y = (stride * (i + 0.5) - box[1]) / (box[3] - box[1]) * 32 - 0.5
    x, y = min(max(x, 0), 31), min(max(y, 0), 31)
    return 1 / (1 + math.exp(-bilinear(shape, y, x))) / (1 + math.exp(-saliency[i, j]))


def bilinear(field: np.ndarray, y: float, x: float) -> float:
    i, j = int(y), int(x)
    below, right = min(i + 1, field.shape[0] - 1), min(j + 1, field.shape[1] - 1)
    fy, fx = y - i, x - j
    upper = field[i, j] * (1 - fx) + field[i, right] * fx
    lower = field[below, j] * (1 - fx) + field[below, right] * fx
    return float(upper * (1 - fy) + lower * fy)


def loop_values(
    features: np.ndarray,
    params: np.ndarray,
    box: np.ndarray,
    head: str,
    image_size: tuple[int, int],
    matrix: np.ndarray,
    stride: int,
    margin: float,
    label: int,
) -> np.ndarray:
    """v [H, W] in float64; NaN where the pixel is outside the grown box."""
    features, params, box = features.astype(float), params.astype(float), box.astype(float)
    cells: dict[tuple[int, int], float] = {}
    rows, columns = features.shape[1:]
    values = np.full(image_size, np.nan)
    grow_x, grow_y = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
        return values
    for py in range(image_size[0]):
        for px in range(image_size[1]):
            x = matrix[0, 0] * (px + 0.5) + matrix[0, 2]
            y = matrix[1, 1] * (py + 0.5) + matrix[1, 2]
            if not (box[0] - grow_x <= x < box[2] + grow_x and box[1] - grow_y <= y < box[3] + grow_y):
                continue
            u = min(max(x / stride - 0.5, 0), columns - 1)
            v = min(max(y / stride - 0.5, 0), rows - 1)
            field = np.zeros((2, 2))
            for a in range(2):
                for b in range(2):
                    i, j = min(int(v) + a, rows - 1), min(int(u) + b, columns - 1)
                    if (i, j) not in cells:
                        if head == "dynamic":
                            cells[i, j] = dynamic_value(features, params, box, stride, i, j)
                        else:
                            channel = 0 if len(features) == 1 else label
                            cells[i, j] = shape_value(features[channel], params, box, stride, i, j)
                    field[a, b] = cells[i, j]
            values[py, px] = bilinear(field, v - int(v), u - int(u))
    return values


def make_case(rng: np.random.Generator, head: str, count: int, rows: int, columns: int, classes: int = 1) -> Any:
    features = rng.normal(0, 1.5, (8 if head == "dynamic" else classes, rows, columns)).astype(np.float32)
    if head == "dynamic":
        params = rng.normal(0, 0.4, (count, 169)).astype(np.float32)
    else:
        features += 1.5
        params = rng.normal(1, 2, (count, 1024)).astype(np.float32)
    corners = rng.uniform(-10, 4 * max(rows, columns) + 10, (count, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    return features, params, boxes


def check(
    features: np.ndarray,
    params: np.ndarray,
    boxes: np.ndarray,
    head: str,
    image_size: tuple[int, int],
    matrix: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    stride: int = 4,
    margin: float = 0.1,
    threshold: float | None = None,
) -> tuple[int, int]:
    """All three outputs against the loops; the number of pixels inside and the number compared."""
    arguments: dict[str, Any] = {
        "head": head,
        "image_size": image_size,
        "image_to_input": matrix,
        "labels": labels,
        "stride": stride,
        "box_margin": margin,
        "threshold": threshold,
    }
    masks = ops.assemble_masks(features, params, boxes, **arguments)
    crops = ops.assemble_masks(features, params, boxes, output="bitmap", **arguments)
    outlines = ops.assemble_masks(features, params, boxes, output="polygon", **arguments)
    assert len(masks) == len(crops) == len(outlines) == len(boxes)
    limit = THRESHOLD[head] if threshold is None else threshold
    inside = compared = 0
    for k, mask in enumerate(masks):
        bitmap = ops.rle_decode(mask).astype(bool)
        assert ops.rle_encode(bitmap) == mask  # canonical
        label = -1 if labels is None else int(labels[k])
        values = loop_values(
            features, params[k], boxes[k], head, image_size, np.eye(2, 3) if matrix is None else matrix, stride,
            margin, label,
        )  # fmt: skip
        certain = ~(abs(values - limit) < TIE)
        np.testing.assert_array_equal(bitmap[certain], (values >= limit)[certain])
        inside += int(bitmap.sum())
        compared += int((certain & np.isfinite(values)).sum())

        x0, y0, crop = crops[k]
        pasted = np.zeros(image_size, bool)
        pasted[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
        assert crop.dtype == bool
        np.testing.assert_array_equal(pasted, bitmap)
        assert ops.rle_from_polygons(outlines[k], *image_size, fill="evenodd") == mask
    return inside, compared


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("image_size", "scale", "shift"),
    [
        ((40, 56), (1, 1), (0, 0)),
        ((90, 120), (0.45, 0.45), (0.7, -3.2)),
        ((61, 33), (0.7, 1.7), (-2.5, 5.25)),
        ((13, 17), (3.3, 3.1), (0.1, 0.2)),
        ((5, 6), (9, 11), (0, 0)),
    ],
    ids=["identity", "upscale", "both", "downscale", "skips-cells"],
)
def test_equals_plain_loops(
    head: str, image_size: tuple[int, int], scale: tuple[float, float], shift: tuple[float, float]
) -> None:
    rng = np.random.default_rng(0)
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    inside, compared = check(*make_case(rng, head, 6, 10, 14), head, image_size, matrix)
    assert 0.05 < inside / compared < 0.95  # neither nothing nor everything was inside


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(HEADS),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(*[st.floats(0.05, 8)] * 2),
    st.tuples(*[st.floats(-30, 30)] * 2),
    st.sampled_from([1, 4, 8]),
    st.floats(0, 1.5),
    st.integers(0, 2**32 - 1),
)
def test_equals_plain_loops_for_any_geometry(
    head: str, image_size: Any, cells: Any, scale: Any, shift: Any, stride: int, margin: float, seed: int
) -> None:
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    case = make_case(np.random.default_rng(seed), head, 2, *cells)
    check(*case, head, image_size, matrix, stride=stride, margin=margin)


@pytest.mark.parametrize("head", HEADS)
def test_boxes_of_every_kind(head: str) -> None:
    nan, inf = float("nan"), float("inf")
    boxes = np.array(
        [
            [4, 4, 20, 24],
            [-500, -300, 700, 900],  # around everything
            [-3e38, -3e38, 3e38, 3e38],
            [100, 4, 120, 20],  # beside the image
            [-20, -20, -8, -8],
            [-20, 4, 5, 9],  # half outside
            [8, 8, 8, 20],  # no width
            [8, 8, 20, 8],
            [20, 20, 8, 8],  # turned inside out
            [8, 20, 20, 8],
            [9, 9, 9.01, 9.01],  # smaller than a pixel
            [9.3, 9.3, 9.7, 9.7],
            [nan, 4, 20, 24],
            [4, 4, 20, nan],
            [-inf, -inf, inf, inf],
            [4, 4, inf, 24],
        ],
        np.float32,
    )
    features, params, _ = make_case(np.random.default_rng(1), head, len(boxes), 8, 9)
    inside, _ = check(features, params, boxes, head, (31, 37))
    assert inside > 0
    areas = ops.rle_area(ops.assemble_masks(features, params, boxes, head=head, image_size=(31, 37)))
    assert not areas[[3, 4, 6, 7, 8, 9, 12, 13, 14, 15]].any()
    crops = ops.assemble_masks(features, params, boxes, head=head, image_size=(31, 37), output="bitmap")
    assert [crop[2].shape for crop in crops][3:5] == [(0, 0), (0, 0)]
    assert crops[0][:2] == (2, 2)
    assert crops[0][2].shape == (24, 20)  # 4 - 1.6 .. 20 + 1.6 and 4 - 2 .. 24 + 2


@pytest.mark.parametrize("head", HEADS)
def test_nan_is_outside(head: str) -> None:
    features, params, boxes = make_case(np.random.default_rng(2), head, 4, 8, 9)
    boxes[:] = [2, 2, 34, 30]
    params[1:] = params[0]
    if head == "dynamic":
        params[1, 0], params[2, -1], params[3, 130] = np.nan, np.nan, np.nan  # first layer, last bias, hidden layer
    else:
        params[1] = np.nan
        params[2, 5 * 32 + 5], params[3, 600] = np.nan, np.nan
    inside, _ = check(features, params, boxes, head, (32, 36))
    assert inside > 0
    areas = ops.rle_area(ops.assemble_masks(features, params, boxes, head=head, image_size=(32, 36)))
    assert areas[1] == 0 < areas[0]
    features[0, 3, 4] = np.nan  # one cell: its neighbourhood alone is lost
    broken = ops.rle_decode(ops.assemble_masks(features, params, boxes, head=head, image_size=(32, 36)))
    check(features, params, boxes, head, (32, 36))
    assert 0 < broken[0].sum() < areas[0]
    assert not broken[0][11:17, 15:21].any()


@pytest.mark.parametrize("head", HEADS)
def test_infinite_values_are_outside(head: str) -> None:
    features, params, boxes = make_case(np.random.default_rng(3), head, 1, 8, 9)
    boxes[:] = [0, 0, 36, 32]
    params[:] = 0
    params[0, -1] = np.inf
    mask = ops.assemble_masks(features, params, boxes, head=head, image_size=(32, 36), threshold=-1)[0]
    expected = 0 if head == "dynamic" else 32 * 36  # the sigmoid of an infinite logit is finite
    assert ops.rle_area(mask) <= expected


@pytest.mark.parametrize("head", HEADS)
def test_one_pixel(head: str) -> None:
    features, params, _ = make_case(np.random.default_rng(4), head, 12, 1, 1)
    boxes = np.tile(np.float32([-3, -3, 4, 4]), (12, 1))
    inside, compared = check(features, params, boxes, head, (1, 1))
    assert 0 < inside < compared


@pytest.mark.parametrize("head", HEADS)
def test_no_instances(head: str) -> None:
    features, params, boxes = make_case(np.random.default_rng(5), head, 0, 3, 4)
    for output in ("rle", "bitmap", "polygon"):
        assert ops.assemble_masks(features, params, boxes, head=head, image_size=(9, 9), output=output) == []


def test_labels_choose_the_saliency() -> None:
    features, params, boxes = make_case(np.random.default_rng(6), "shape", 6, 8, 9, classes=3)
    labels = np.array([0, 1, 2, 2, 1, 0])
    inside, _ = check(features, params, boxes, "shape", (30, 35), labels=labels)
    assert inside > 0
    masks = ops.assemble_masks(features, params, boxes, head="shape", image_size=(30, 35), labels=labels)
    for k, label in enumerate(labels):
        alone = ops.assemble_masks(
            features[label : label + 1], params[k : k + 1], boxes[k : k + 1], head="shape", image_size=(30, 35)
        )
        assert alone == [masks[k]]
    labels[0] = -1
    hidden = ops.assemble_masks(features, params, boxes, head="shape", image_size=(30, 35), labels=labels)
    assert ops.rle_area(hidden[0]) == 0
    assert hidden[1:] == masks[1:]


@pytest.mark.parametrize("head", HEADS)
def test_threshold(head: str) -> None:
    case = make_case(np.random.default_rng(7), head, 4, 8, 9)
    for threshold in (0.2, 0.37, -0.6):
        check(*case, head, (30, 35), threshold=threshold)


def test_plateau_at_the_threshold_is_inside() -> None:
    features, params, boxes = make_case(np.random.default_rng(8), "dynamic", 1, 8, 9)
    params[:] = 0  # v is 0 everywhere
    boxes[:] = [4, 4, 20, 24]
    assert ops.rle_area(ops.assemble_masks(features, params, boxes, image_size=(40, 40), box_margin=0)[0]) == 16 * 20


@pytest.mark.parametrize("head", HEADS)
def test_threads_and_instruction_sets_give_the_same(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, params, boxes = make_case(np.random.default_rng(9), head, 33, 20, 24)
    call = {"head": head, "image_size": (200, 240), "image_to_input": [[0.4, 0, 0], [0, 0.4, 0]]}
    one = ops.assemble_masks(features, params, boxes, threads=1, **call)
    assert ops.rle_area(one).sum() > 1000
    for threads in (2, 8, None):
        assert ops.assemble_masks(features, params, boxes, threads=threads, **call) == one
    for isa in _core.isa_available():
        monkeypatch.setenv("CENTERMASK_ISA", isa)
        other = ops.assemble_masks(features, params, boxes, **call)
        # Rounding differs by instruction set: a pixel at the threshold may change sides.
        difference = (ops.rle_decode(other) != ops.rle_decode(one)).sum()
        assert difference <= 1e-4 * ops.rle_area(one).sum()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("head", HEADS)
def test_every_instruction_set_equals_plain_loops(head: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa not in _core.isa_available():
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("CENTERMASK_ISA", isa)
    check(*make_case(np.random.default_rng(10), head, 3, 11, 15), head, (44, 60))


@pytest.mark.parametrize("head", HEADS)
def test_strided_and_dlpack_inputs(head: str) -> None:
    features, params, boxes = make_case(np.random.default_rng(11), head, 5, 8, 9)
    call = {"head": head, "image_size": (30, 36)}
    expected = ops.assemble_masks(features, params, boxes, **call)

    def strided(array: np.ndarray) -> np.ndarray:
        return np.repeat(array, 2, axis=-1)[..., ::2]

    assert ops.assemble_masks(strided(features), strided(params), strided(boxes), **call) == expected
    channels_last = np.ascontiguousarray(features.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert ops.assemble_masks(channels_last, params[::-1].copy()[::-1], boxes, **call) == expected

    class Borrowed:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    assert ops.assemble_masks(Borrowed(features), Borrowed(params), Borrowed(boxes), **call) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_features": np.zeros((7, 4, 4), np.float32)}, ValueError, r"mask_features must be \[M=8, h>=1, w>=1\]"),
        ({"mask_features": np.zeros((8, 0, 4), np.float32)}, ValueError, r"got \[8, 0, 4\]"),
        ({"mask_features": np.zeros((8, 4, 4))}, TypeError, "mask_features must be float32, got float64"),
        ({"mask_features": [[0.0]]}, TypeError, "mask_features must be a NumPy array"),
        ({"mask_params": np.zeros((2, 168), np.float32)}, ValueError, r"must be \[I=2, P=169\], got \[2, 168\]"),
        ({"mask_params": np.zeros((3, 169), np.float32)}, ValueError, r"got \[3, 169\]"),
        ({"boxes": np.zeros((2, 5), np.float32)}, ValueError, r"boxes must be \[I, 4\], got \[2, 5\]"),
        ({"boxes": np.zeros((2, 4))}, TypeError, "boxes must be float32"),
        ({"boxes": np.zeros(4, np.float32)}, ValueError, r"boxes must be \[I, 4\], got \[4\]"),
        ({"head": "yolact"}, ValueError, "head must be"),
        ({"output": "png"}, ValueError, "output must be"),
        ({"image_size": (0, 5)}, ValueError, "image_size"),
        ({"image_size": (2**20, 2**20)}, ValueError, "image_size"),
        ({"image_to_input": np.eye(3)}, ValueError, r"image_to_input must be \[2, 3\]"),
        ({"image_to_input": [[1, 0.1, 0], [0, 1, 0]]}, ValueError, "image_to_input must be"),
        ({"image_to_input": [[-1, 0, 0], [0, 1, 0]]}, ValueError, "image_to_input must be"),
        ({"image_to_input": [[1, 0, np.nan], [0, 1, 0]]}, ValueError, "image_to_input must be"),
        ({"stride": 0}, ValueError, "stride must be >= 1, got 0"),
        ({"threshold": np.nan}, ValueError, "threshold must be finite"),
        ({"box_margin": -0.1}, ValueError, "box_margin must be"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("output", ["rle", "bitmap"])
def test_errors(change: dict[str, Any], error: type[Exception], message: str, output: str) -> None:
    arguments: dict[str, Any] = {
        "mask_features": np.zeros((8, 4, 4), np.float32),
        "mask_params": np.zeros((2, 169), np.float32),
        "boxes": np.zeros((2, 4), np.float32),
        "image_size": (16, 16),
        "output": output,
    }
    ops.assemble_masks(**arguments)
    with pytest.raises(error, match=message):
        ops.assemble_masks(**(arguments | change))


def test_image_size_of_numpy_integers_gives_plain_ones() -> None:
    features, params, boxes = make_case(np.random.default_rng(13), "dynamic", 1, 4, 4)
    mask = ops.assemble_masks(features, params, boxes, image_size=tuple(np.array([16, 17])))[0]
    assert json.loads(json.dumps(mask["size"])) == [16, 17]
    with pytest.raises(TypeError, match="float"):
        ops.assemble_masks(features, params, boxes, image_size=(16.5, 17))


MEMORY = """
import resource
import numpy as np
from centermask import ops
rng = np.random.default_rng(0)
features = rng.normal(0, 1, (8, 96, 128)).astype(np.float32)
params = rng.normal(0, 0.4, (300, 169)).astype(np.float32)
centre, size = rng.uniform(0, 512, (300, 2)), rng.uniform(40, 300, (300, 2))
boxes = np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)
matrix = [[512 / 4000, 0, 0], [0, 512 / 4000, 0]]
ops.assemble_masks(features, params[:1], boxes[:1], image_size=(8, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
masks = ops.assemble_masks(features, params, boxes, image_size=(3000, 4000), image_to_input=matrix)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, ops.rle_area(masks).sum())
"""


def test_memory_is_bounded_on_large_images() -> None:
    result = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    kilobytes, area = map(int, result.stdout.split())
    assert area > 10_000_000
    assert kilobytes < 64_000  # the bitmaps of all images would take 3.6 GB


def test_missing_labels() -> None:
    features, params, boxes = make_case(np.random.default_rng(12), "shape", 2, 4, 4, classes=3)
    with pytest.raises(TypeError, match="labels is missing"):
        ops.assemble_masks(features, params, boxes, head="shape", image_size=(16, 16))
    with pytest.raises(ValueError, match="labels must be below M=3, got 3 at 1"):
        ops.assemble_masks(features, params, boxes, head="shape", image_size=(16, 16), labels=np.array([0, 3]))
