"""InfoCMR over ranks: the options of its negatives, and whose random numbers it draws."""

import pytest
import torch

from ranks import Ranks
from spread_draws import info_cmr
from spread_losses import Spread, check

OPTIONS = {
    "kam-with-gradient": (("detach", False), ("weights", "kam"), ("sigma", 0.5)),
    "kam-per-anchor": (("clustering", "per_anchor"),),
    "attention": (("weights", "attention"),),
    "no-noise": (("num_noise", 0),),
    "no-clusters": (("num_clusters", 0),),
    "nothing-drawn": (("training", False), ("draws_in_eval", False)),
    "one-value-per-pair": (("reduction", "none"),),
    "sum": (("reduction", "sum"), ("gradients", "sum")),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_is_that_of_one_process_with_every_option(two: Ranks, options: str) -> None:
    check(two, Spread("info_cmr", (3, 2), (4, 5), True, OPTIONS[options]))


def test_ranks_draw_from_the_generator_of_rank_0(two: Ranks) -> None:
    spread = Spread("info_cmr", (6, 5))
    expected, after = info_cmr(None, spread, (7,))
    for seeds in ((7, 7), (7, 8)):
        (first, next_first), (second, next_second) = two.run(info_cmr, spread, seeds)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(next_first, after, rtol=0, atol=0)
        if seeds == (7, 7):
            torch.testing.assert_close(next_second, after, rtol=0, atol=0)
    untouched = torch.rand((), generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(next_second, untouched, rtol=0, atol=0)
