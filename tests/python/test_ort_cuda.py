"""The operators in ONNX Runtime's CUDA provider: the tests of `test_ort_ops.py` once more, and whole models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime
import ort_models
from test_ort_ops import (  # noqa: F401 - collected here
    test_a_session_works_on_after_an_error,
    test_assemble_masks_equals_plain_loops,
    test_decode_centers_equals_plain_loops,
    test_deform_conv_equals_plain_loops,
    test_gather_patches_equals_plain_loops,
    test_offsets_that_lead_nowhere_count_as_zero,
    test_two_sessions_and_many_threads_share_the_library,
)

from centermask import _core, ops
from centermask.cli import sample_picture
from centermask.predictor import Predictor


def missing() -> str:
    """Why these tests cannot run here."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "onnxruntime-gpu is not installed"
    if not _core.has_cuda:
        return "centermask was built without CUDA"
    return "" if _core.cuda_devices()["devices"] else "no GPU"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(autouse=True, scope="module")
def on_cuda() -> Iterator[None]:
    ort_models.DEVICE = "cuda"
    yield
    ort_models.DEVICE = "cpu"


def test_a_prediction_is_that_of_the_cpu() -> None:
    image = sample_picture()
    here = Predictor("default", device="cpu", score_threshold=0.5)(image)
    there = Predictor("default", device="cuda", score_threshold=0.5)(image)
    assert len(here) >= 1
    # The provider multiplies in TF32, whose 10 bits leave errors of 5e-4 in each of dozens of layers.
    assert here.labels.tolist() == there.labels.tolist()
    np.testing.assert_allclose(there.scores, here.scores, atol=0.02)
    np.testing.assert_allclose(there.boxes, here.boxes, atol=2.0)
    overlap = np.diag(ops.rle_iou(here.masks.rle, there.masks.rle))
    assert (overlap > 0.97).all(), overlap
