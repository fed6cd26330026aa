"""Products in bfloat16 where the processor has them, and float32 elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from deform_problems import ISAS, Problem, instruction_set, make_problem

from centermask import ops
from centermask.ops import PackedDeformConv2d


def has_bf16() -> bool:
    return PackedDeformConv2d(np.zeros((1, 2, 1, 1), np.float32), allow_bf16=True).uses_bf16


@pytest.mark.skipif(not has_bf16(), reason="no AVX512-BF16")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "p",
    [
        make_problem(3, 96, 20, 20, 64, (3, 3), padding=(1, 1)),
        make_problem(2, 24, 19, 23, 40, (3, 3), stride=(2, 2), padding=(1, 1), groups=4, offset_groups=3),
        make_problem(1, 130, 7, 1, 34, (5, 5), padding=(4, 2), dilation=(2, 1), mask=False, bias=False),
        make_problem(1, 2, 6, 5, 1, (7, 7), padding=(3, 3)),
    ],
    ids=["neck", "groups", "odd sizes", "many taps"],
)
def test_products_in_bfloat16(p: Problem, relu: bool) -> None:
    activation = "relu" if relu else None
    exact = ops.deform_conv2d(*p.tensors, **p.geometry, activation=activation)
    packed = PackedDeformConv2d(p.weight, p.bias, **p.geometry, activation=activation, allow_bf16=True)
    assert packed.uses_bf16
    actual = packed(p.x, p.offset, p.mask)
    # Each factor is off by at most 2**-9 of itself and by a third of that in the mean; errors of many products cancel.
    error = np.linalg.norm(actual - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 5e-3
    for threads in (1, 3):
        again = PackedDeformConv2d(
            p.weight, p.bias, **p.geometry, activation=activation, allow_bf16=True, threads=threads
        )
        np.testing.assert_array_equal(again(p.x, p.offset, p.mask), actual)


@pytest.mark.skipif(not has_bf16(), reason="no AVX512-BF16")
def test_bfloat16_reads_nothing_that_is_not_there() -> None:
    p = make_problem(1, 34, 6, 5, 7, (3, 3), padding=(1, 1), groups=1)
    x = np.full((1, 50, 6, 5), np.nan, np.float32)
    x[:, :34] = p.x  # what lies beside the channels in memory
    packed = PackedDeformConv2d(p.weight, p.bias, **p.geometry, allow_bf16=True)
    np.testing.assert_array_equal(packed(x[:, :34], p.offset, p.mask), packed(p.x, p.offset, p.mask))
    p.offset[:] = 1e9
    np.testing.assert_array_equal(packed(p.x, p.offset, p.mask), np.broadcast_to(p.bias[:, None, None], (1, 7, 6, 5)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("c", [16, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bfloat16_is_left_where_it_cannot_be(isa: str, c: int, dtype: str) -> None:
    p = make_problem(1, c, 6, 5, 7, (3, 3), padding=(1, 1), dtype=dtype)
    with instruction_set(isa):
        packed = PackedDeformConv2d(p.weight, p.bias, **p.geometry, allow_bf16=True)
        assert packed.uses_bf16 == (has_bf16() and isa == "avx512" and c == 16 and dtype == "float32")
        if not packed.uses_bf16:
            np.testing.assert_array_equal(packed(p.x, p.offset, p.mask), ops.deform_conv2d(*p.tensors, **p.geometry))
