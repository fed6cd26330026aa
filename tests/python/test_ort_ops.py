"""The operators inside ONNX Runtime against float64 loops; bad input at run time; sessions that share the library."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime
import test_decode
import test_deform_conv2d
import test_gather
import test_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from ort_models import model_of, run, session_of
from test_deform_conv2d import Problem, make_problem, problems

from centermask import ops, ort

# Sums of up to a few thousand products of size about 1: eps is 6e-8 and, where inputs and results are rounded, 5e-4.
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float16): 4e-3}


def conv_inputs(p: Problem) -> dict[str, np.ndarray | None]:
    return {"X": p.x, "W": p.weight, "offset": p.offset, "B": p.bias, "mask": p.mask}


def conv_attributes(p: Problem) -> dict[str, Any]:
    taps = p.weight.shape[2] * p.weight.shape[3]
    return {
        "strides": list(p.geometry["stride"]),
        "pads": [*p.geometry["padding"], *p.geometry["padding"]],
        "dilations": list(p.geometry["dilation"]),
        "group": p.geometry["groups"],
        "offset_group": p.offset.shape[1] // (2 * taps),
        "kernel_shape": list(p.weight.shape[2:]),
    }


def as_type(p: Problem, dtype: Any) -> Problem:
    tensors = [None if a is None else a.astype(dtype) for a in p.tensors]
    return Problem(*tensors, p.geometry)


@settings(max_examples=60, deadline=None)
@given(
    p=problems(),
    dtype=st.sampled_from([np.float32, np.float16]),
    constant=st.booleans(),
    relu=st.booleans(),
    threads=st.sampled_from([1, 3]),
)
def test_deform_conv_equals_plain_loops(p: Problem, dtype: Any, constant: bool, relu: bool, threads: int) -> None:
    p = as_type(p, dtype)
    constants = [name for name in ("W", "B") if constant and conv_inputs(p)[name] is not None]
    activation = {"activation": "relu"} if relu else {}
    (actual,) = run("DeformConv", conv_inputs(p), constants, threads, **conv_attributes(p), **activation)
    expected = test_deform_conv2d.reference(p)
    expected = np.maximum(expected, 0) if relu else expected
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE[np.dtype(dtype)] * max(1, abs(expected).max(initial=0)))


def test_deform_conv_equals_the_runtimes_own() -> None:
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 25):
        pytest.skip("this runtime has no DeformConv")
    p = make_problem(1, 64, 33, 21, 48, (3, 3), padding=(1, 1))
    model = model_of("DeformConv", conv_inputs(p), ["W", "B"], **conv_attributes(p))
    feeds = {"X": p.x, "offset": p.offset, "mask": p.mask}
    (ours,) = session_of(model).run(None, feeds)
    model.graph.node[0].domain = ""
    (theirs,) = session_of(model).run(None, feeds)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -3e9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_offsets_that_lead_nowhere_count_as_zero(bad: float, dtype: Any) -> None:
    p = make_problem(1, 5, 6, 7, 4, (3, 3), padding=(1, 1))
    p.offset[:, 2:6] = bad
    with np.errstate(over="ignore"):
        p = as_type(p, dtype)
    (actual,) = run("DeformConv", conv_inputs(p), ["W"], **conv_attributes(p))
    np.testing.assert_allclose(actual, test_deform_conv2d.reference(p), atol=5 * TOLERANCE[np.dtype(dtype)])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "top_k"), [((2, 3, 9, 11), 20), ((1, 80, 33, 31), 100), ((0, 2, 4, 4), 5), ((2, 1, 2, 3), 50)]
)
def test_decode_centers_equals_plain_loops(shape: tuple[int, ...], top_k: int, dtype: Any) -> None:
    heatmap = np.random.default_rng(3).normal(size=shape).astype(dtype)
    heatmap.flat[:3] = [np.nan, -np.inf, np.inf][: heatmap.size]
    threshold = 0.4
    scores, labels, index, count = run("DecodeCenters", {"h": heatmap}, top_k=top_k, score_threshold=threshold)
    expected = test_decode.reference(heatmap, top_k, threshold)
    assert (scores.dtype, labels.dtype, index.dtype, count.dtype) == (np.float32, np.int64, np.int64, np.int64)
    assert scores.shape == labels.shape == index.shape == (shape[0], top_k)
    assert count.tolist() == [len(rows) for rows in expected]
    for n, rows in enumerate(expected):
        k = len(rows)
        assert labels[n].tolist() == [c for _, c, _ in rows] + [-1] * (top_k - k)
        assert index[n].tolist() == [i for _, _, i in rows] + [0] * (top_k - k)
        with np.errstate(over="ignore"):
            own = 1 / (1 + np.exp(-np.array([v for v, _, _ in rows], np.float64)))
        np.testing.assert_allclose(scores[n, :k], own, rtol=2e-7)
        assert not scores[n, k:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 17, 1, 1), (0, 2, 3, 3), (1, 3, 0, 4)])
def test_gather_patches_equals_plain_loops(shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=shape).astype(dtype)
    index = rng.integers(-3, shape[2] * shape[3] + 3, (shape[0], 7))
    (patches,) = run("GatherPatches", {"f": features, "i": index})
    assert patches.dtype == dtype
    np.testing.assert_array_equal(patches, test_gather.reference(features, index))


def mask_inputs(
    head: str, counts: list[int], sizes: list[tuple[int, int]], rows: int = 4, dtype: Any = np.float32
) -> Any:
    rng = np.random.default_rng(5)
    cases = [test_masks.make_case(rng, head, rows, 9, 11, 2 if head == "shape" else 1) for _ in counts]
    batch = len(counts)
    channels = 2 if head == "shape" else 8
    stacked = [np.stack([case[i] for case in cases]) if cases else None for i in range(3)]
    empty = [(0, channels, 9, 11), (0, rows, 1024 if head == "shape" else 169), (0, rows, 4)]
    features, params, boxes = (
        np.zeros(shape, "f") if a is None else a for a, shape in zip(stacked, empty, strict=True)
    )
    matrix = np.array([[[0.45 + 0.1 * n, 0, 0.7], [0, 0.5, -3.2]] for n in range(batch)]).reshape(batch, 2, 3)
    return {
        "mask_features": features.astype(dtype),
        "mask_params": params.astype(dtype),
        "boxes": boxes,
        "labels": rng.integers(0, 2, (batch, rows)),
        "count": np.array(counts, np.int64).reshape(batch),
        "image_to_input": matrix,
        "image_size": np.array(sizes, np.int64).reshape(batch, 2),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", test_masks.HEADS)
@pytest.mark.parametrize(
    ("counts", "sizes"),
    [([3, 0, 4], [(60, 80), (40, 41), (55, 33)]), ([0], [(7, 9)]), ([], []), ([1], [(1, 1)])],
    ids=["three", "nothing", "no pictures", "one pixel"],
)
def test_assemble_masks_equals_plain_loops(head: str, counts: list[int], sizes: Any, dtype: Any) -> None:
    inputs = mask_inputs(head, counts, sizes, dtype=dtype)
    runs, offsets = run("AssembleMasks", inputs, head=head, box_margin=0.25)
    assert (runs.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert offsets.shape == (len(counts) * 4 + 1,)
    assert offsets[0] == 0
    assert offsets[-1] == len(runs)
    compared = 0
    for n, count in enumerate(counts):
        height, width = sizes[n]
        for k in range(4):
            own = runs[offsets[n * 4 + k] : offsets[n * 4 + k + 1]]
            if k >= count:
                assert len(own) == 0
                continue
            assert own.sum() == height * width
            bitmap = np.repeat(np.arange(len(own)) % 2, own).reshape(width, height).T.astype(bool)
            values = test_masks.loop_values(
                inputs["mask_features"][n].astype(np.float32), inputs["mask_params"][n, k].astype(np.float32),
                inputs["boxes"][n, k], head, (height, width), inputs["image_to_input"][n], 4, 0.25,
                int(inputs["labels"][n, k]),
            )  # fmt: skip
            limit = test_masks.THRESHOLD[head]
            certain = ~(abs(values - limit) < test_masks.TIE)
            np.testing.assert_array_equal(bitmap[certain], (values >= limit)[certain])
            compared += int((certain & np.isfinite(values)).sum())
    assert compared > 1000 or sum(counts) < 2


# ---- bad input ----


def small(**changes: np.ndarray | None) -> dict[str, np.ndarray | None]:
    return {**conv_inputs(make_problem(1, 4, 6, 7, 4, (3, 3), padding=(1, 1))), **changes}


PADS = {"pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        ("DeformConv", small(offset=np.zeros((1, 9, 6, 7), "f")), PADS, "offset must be [N=1, "),
        ("DeformConv", small(mask=np.zeros((1, 9, 6, 6), "f")), PADS, "mask must be"),
        ("DeformConv", small(X=np.zeros((4, 6, 7), "f")), PADS, "x must be"),
        ("DeformConv", small(B=np.zeros(3, "f")), PADS, "bias must be"),
        ("DeformConv", small(X=np.zeros((1, 5, 6, 7), "f")), PADS, "deform_conv2d: "),
        ("DeformConv", small(), {}, "offset must be"),
        ("DeformConv", small(), {**PADS, "offset_group": 2}, "attribute offset_group is 2"),
        ("DeformConv", small(), {**PADS, "group": 1.0}, "attribute group must be an integer"),
        ("DeformConv", small(), {"pads": 1}, "attribute pads must be a list of integers"),
        ("DeformConv", small(), {**PADS, "activation": 1}, "attribute activation must be a text"),
        ("DeformConv", small(), {**PADS, "kernel_shape": [1, 3]}, "attribute kernel_shape is not that of the weight"),
        ("DeformConv", small(), {"pads": [1, 1, 0, 1]}, "pads must be 4 values, the same at the begin and the end"),
        ("DeformConv", small(), {**PADS, "strides": [1]}, "strides must have 2 values, got 1"),
        ("DeformConv", small(), {**PADS, "strides": [0, 1]}, "stride"),
        ("DeformConv", small(), {**PADS, "group": 3}, "groups"),
        ("DeformConv", small(), {**PADS, "activation": "swish"}, "activation must be none or relu, got swish"),
        ("DecodeCenters", {"h": np.zeros((2, 3, 4), "f")}, {}, "heatmap must be [N, C, H, W], got [2, 3, 4]"),
        ("DecodeCenters", {"h": np.zeros((1, 1, 2, 2), "f")}, {"top_k": 0}, "top_k must be at least 1, got 0"),
        ("DecodeCenters", {"h": np.zeros((1, 1, 2, 2), "f")}, {"score_threshold": 1.5}, "must be in 0..1, got 1.5"),
        (
            "GatherPatches",
            {"f": np.zeros((1, 2, 3, 3), "f"), "i": np.zeros((2, 4), np.int64)},
            {},
            "gather_patches: ",
        ),
        ("GatherPatches", {"f": np.zeros((2, 3, 3), "f"), "i": np.zeros((2, 4), np.int64)}, {}, "features must be"),
        ("AssembleMasks", {"count": [5]}, {}, "count must be in 0..4, got 5 for picture 0"),
        ("AssembleMasks", {"count": [-1]}, {}, "count must be in 0..4, got -1"),
        ("AssembleMasks", {"image_size": [[0, 5]]}, {}, "image"),
        ("AssembleMasks", {"boxes": np.zeros((1, 3, 4), "f")}, {}, "boxes must be [1, 4, 4], got [1, 3, 4]"),
        ("AssembleMasks", {"mask_params": np.zeros((1, 4, 168), "f")}, {}, "169"),
        ("AssembleMasks", {"image_to_input": [[[1.0, 0.5, 0], [0, 1, 0]]]}, {}, "image_to_input"),
        ("AssembleMasks", {}, {"head": "round"}, "head must be dynamic or shape, got round"),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_status(operator: str, inputs: Any, attributes: Any, message: str) -> None:
    if operator == "AssembleMasks":
        case = mask_inputs("dynamic", [2], [(20, 30)])
        inputs = case | {name: np.asarray(value, case[name].dtype) for name, value in inputs.items()}
    constants = ["W"] if operator == "DeformConv" else []
    with pytest.raises(Exception, match=re.escape(message)):
        run(operator, inputs, constants, **attributes)


def test_a_threshold_may_be_written_as_an_integer() -> None:
    heatmap = {"h": np.full((1, 1, 2, 2), 3.0, "f")}  # a score of 0.95
    assert run("DecodeCenters", heatmap, score_threshold=1)[3] == 0
    assert run("DecodeCenters", heatmap, score_threshold=0)[3] > 0


def test_a_wrong_type_is_refused_when_the_model_is_loaded() -> None:
    with pytest.raises(Exception, match=r"DeformConv|float64|double"):
        run("DeformConv", {name: None if a is None else a.astype(np.float64) for name, a in small().items()}, **PADS)


def test_a_session_works_on_after_an_error() -> None:
    p = make_problem(1, 4, 6, 7, 4, (3, 3), padding=(1, 1))
    session = session_of(model_of("DeformConv", conv_inputs(p), ["W", "B"], **conv_attributes(p)))
    feeds = {"X": p.x, "offset": p.offset, "mask": p.mask}
    for _ in range(3):
        with pytest.raises(Exception, match="offset must be"):
            session.run(None, {**feeds, "offset": p.offset[:, :4]})
        np.testing.assert_allclose(session.run(None, feeds)[0], test_deform_conv2d.reference(p), atol=2e-5)


# ---- the library ----


def test_the_library_is_registered_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ort.library_path().is_absolute()
    ort.register(onnxruntime.SessionOptions())


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "LIBRARY", "libnothing.so")
    with pytest.raises(ort.LibraryError, match=r"libnothing\.so: no such file"):
        ort.register(onnxruntime.SessionOptions())


@pytest.mark.parametrize("content", ["empty", "another machine"])
def test_a_library_that_does_not_load_is_named(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(ort.library_path().read_bytes())
    if content == "another machine":
        data[18:20] = (243).to_bytes(2, "little")  # e_machine of the ELF header: RISC-V
    (tmp_path / "lib.so").write_bytes(bytes(data) if content != "empty" else b"")
    monkeypatch.setattr(ort, "library_path", lambda: tmp_path / "lib.so")
    with pytest.raises(ort.LibraryError, match=r"lib\.so: onnxruntime cannot load it: "):
        ort.register(onnxruntime.SessionOptions())


def test_threads_do_not_change_results() -> None:
    p = make_problem(2, 33, 17, 19, 40, (3, 3), padding=(1, 1))
    results = [run("DeformConv", conv_inputs(p), ["W"], threads, **conv_attributes(p))[0] for threads in (1, 2, 5)]
    assert all((result == results[0]).all() for result in results)


def test_two_sessions_and_many_threads_share_the_library() -> None:
    problems_ = [make_problem(1, c, 15, 14, 8, (3, 3), padding=(1, 1), seed=c) for c in (16, 24)]
    sessions = [session_of(model_of("DeformConv", conv_inputs(p), ["W"], **conv_attributes(p))) for p in problems_]
    expected = [test_deform_conv2d.reference(p) for p in problems_]
    failures: list[BaseException] = []

    def work(which: int) -> None:
        p = problems_[which]
        feeds = {"X": p.x, "offset": p.offset, "mask": p.mask, "B": p.bias}
        try:
            for _ in range(25):
                np.testing.assert_allclose(sessions[which].run(None, feeds)[0], expected[which], atol=2e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]


def test_a_session_ends_while_another_runs() -> None:
    p = make_problem(1, 32, 24, 24, 16, (3, 3), padding=(1, 1))
    model = model_of("DeformConv", conv_inputs(p), ["W", "B"], **conv_attributes(p))
    feeds = {"X": p.x, "offset": p.offset, "mask": p.mask}
    expected = test_deform_conv2d.reference(p)
    steady = session_of(model)
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            session_of(model).run(None, feeds)
            gc.collect()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(40):
            np.testing.assert_allclose(steady.run(None, feeds)[0], expected, atol=2e-5)
    finally:
        stop.set()
        other.join()


def test_the_process_ends_quietly() -> None:
    """Threads, kernels and domains of the library outlive nothing that they need."""
    code = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "import numpy as np, onnxruntime\n"
        "from ort_models import model_of, session_of\n"
        "inputs = {'h': np.zeros((1, 2, 64, 64), 'f')}\n"
        "session = session_of(model_of('DecodeCenters', inputs))\n"
        "print(session.run(None, inputs)[3])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "[100]", "")


def test_the_library_stays_loaded_when_the_last_session_ends() -> None:
    """Runtimes unload it then. Below 1.17, threads of its own pool would be left without code to return to."""
    code = (
        f"import gc, sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "import numpy as np\n"
        "from ort_models import model_of, session_of\n"
        "session = session_of(model_of('DecodeCenters', {'h': np.zeros((1, 2, 64, 64), 'f')}))\n"
        "del session; gc.collect()\n"
        "print('libcentermask_ort.so' in open('/proc/self/maps').read())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_finished_masks_are_those_of_the_core() -> None:
    inputs = mask_inputs("dynamic", [4], [(90, 120)])
    runs, offsets = run("AssembleMasks", inputs, head="dynamic", box_margin=0.125)
    masks = ops.assemble_masks(
        inputs["mask_features"][0], inputs["mask_params"][0], inputs["boxes"][0], head="dynamic", image_size=(90, 120),
        image_to_input=inputs["image_to_input"][0], box_margin=0.125,
    )  # fmt: skip
    for k, mask in enumerate(masks):
        bitmap = ops.rle_decode(mask)
        own = runs[offsets[k] : offsets[k + 1]]
        assert (bitmap == np.repeat(np.arange(len(own)) % 2, own).reshape(120, 90).T).all()
