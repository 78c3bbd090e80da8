"""Triton's cross-entropies of pairs, in its interpreter."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from cross_entropies import (  # noqa: F401
    CrossEntropy,
    by_kernel,
    test_any_strides,
    test_logits_in_the_thousands_keep_their_digits,
    test_losses_are_as_exact_as_the_formula,
    test_pairs_without_negatives_pull_nothing,
    test_small_losses_keep_their_digits,
    test_what_is_not_finite_is_what_the_formula_gives,
)
from itm_kernels import backends
from kernels import MARKS

pytestmark = [
    *MARKS["triton"],
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of inf - inf, in numpy
]


@pytest.fixture
def cross_entropy() -> Iterator[CrossEntropy]:
    with patch.dict(backends.PREFERENCE, cpu=("triton",)):
        yield by_kernel
