"""Triton's k-means++, in its interpreter."""

import pytest
import torch

from kernels import MARKS
from tests.ops.test_native_kmeans_plus_plus import (  # noqa: F401
    Start,
    draws_of,
    rows,
    test_copies_of_a_centroid_are_not_drawn_while_there_are_other_rows,
    test_lower_precisions,
    test_nan_repeats_the_first_centroid,
    test_rows_are_those_of_the_oracle,
    test_strides,
)

pytestmark = [
    *MARKS["triton"],
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of NaN, in numpy
]


@pytest.fixture
def start() -> Start:
    return torch.ops.itm_triton.kmeans_plus_plus


def test_draws_of_many_programs(start: Start) -> None:
    # 70 programs: their draws are compared in two chunks.
    x, draws = rows(4480, 2), draws_of(3, 4480)
    wanted = torch.ops.itm_native.kmeans_plus_plus(x, None, draws)
    assert torch.equal(start(x, None, draws), wanted)
