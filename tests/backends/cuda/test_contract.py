"""The contract of every loss on the emulator, for losses whose operators have CUDA kernels."""

from collections.abc import Iterator

import pytest

from emulated import OPERATORS, as_native, needs_compiler
from itm_kernels import backends
from loss_cases import BY_NAME, Case
from tests.contract.test_collapsed_rows import (  # noqa: F401
    test_collapsed_rows_err_no_more_than_the_originals,
    test_gradients_of_collapsed_rows,
)
from tests.contract.test_edge_cases import (  # noqa: F401
    test_a_score_that_overflows_is_an_ordinary_negative,
    test_a_zero_row_has_no_cosine_and_no_gradient,
    test_an_infinite_row_shows_in_its_gradient_without_a_mask,
    test_equal_scores_go_to_the_lowest_index,
    test_tiny_rows_have_their_gradients,
)
from tests.contract.test_every_loss import (  # noqa: F401
    test_a_zero_row_has_no_gradient,
    test_autocast_changes_nothing,
    test_collapsed_embeddings_are_finite,
    test_error_is_at_most_twice_the_references,
    test_half_precision_is_computed_in_fp32,
    test_inference_mode_gives_the_same_value,
    test_nan_in_any_row_shows,
    test_one_pair_has_no_negative_and_stays_attached,
    test_same_inputs_give_the_same_bits,
    test_strides_do_not_matter,
    test_where_the_loss_is_nan_its_gradient_is,
)
from tests.contract.test_ops import (  # noqa: F401
    test_hardest_negatives_are_differentiable_scores,
    test_log_sum_exp_leaves_out_pairs_that_share_an_id,
    test_ties_go_to_the_lowest_index_with_the_whole_gradient,
)

pytestmark = needs_compiler
NAMES = ("sum_of_hinges", "max_of_hinges", "semihard", "info_nce", "sigmoid", "imc-l1", "info_cmr")


@pytest.fixture
def backend() -> Iterator[str]:
    with as_native():
        yield "auto"


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return BY_NAME[request.param]


def test_the_operators_of_these_losses_are_emulated(backend: str) -> None:
    operators = "sum_of_hinges", "max_of_hinges", "log_sum_exp", "sigmoid", "intra_modal"
    for operator in (*operators, "info_cmr_total"):
        assert operator in OPERATORS
        assert backends.choose(operator, "cpu", (1, 1)) == "native"


# An infinite row outside the band, with stored scores and without; division by norms of vectors.
@pytest.mark.parametrize("name", ["constraint-official-cosine", "info_cmr-attached"])
def test_extremes_of_other_operators(name: str, backend: str) -> None:
    test_where_the_loss_is_nan_its_gradient_is(BY_NAME[name], backend, 4)
    test_a_zero_row_has_no_gradient(BY_NAME[name], backend)
