"""Triton's unit rows, in its interpreter."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from itm_kernels import backends
from kernels import MARKS
from tests.ops.test_native_unit_rows import (  # noqa: F401
    Rows,
    by_kernel,
    by_torch,
    result,
    test_gradients_with_strides,
    test_rows_are_as_exact_as_normalize,
    test_rows_of_a_batch_and_with_strides,
    test_rows_without_a_length,
    test_unit_rows_are_differentiable_once,
)

pytestmark = [
    *MARKS["triton"],
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of inf / inf, in numpy
]


@pytest.fixture
def unit() -> Iterator[Rows]:
    with patch.dict(backends.PREFERENCE, cpu=("triton",)):
        yield by_kernel


def test_rows_of_several_chunks_and_of_several_programs(unit: Rows) -> None:
    for N, D in ((3, 2500), (600, 33)):
        x, pull = torch.randn(2, N, D, dtype=torch.float64)
        for ours, theirs in zip(result(unit, x, pull), result(by_torch, x, pull), strict=True):
            torch.testing.assert_close(ours, theirs)
