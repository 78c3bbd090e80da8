"""Ranks of a retrieval evaluation, and mined negatives. Least work: one product.

Negatives differ between draws. The compared value is the mean score of the drawn negatives, within
the sampling error of that many draws.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, plain
from benchmarks.shapes import LARGE, sizes
from itm_kernels import mining, ops

TEMPERATURE = 0.07  # ALBEF's


@pytest.mark.parametrize("size", sizes(LARGE), ids=str)
def bench_ranks(compare, sized, compiled, device, size):
    size = sized(size)
    queries, gallery = inputs.paired(size, device)
    ids = torch.arange(size.N, device=device)
    row = Row(
        "ranks",
        size,
        (queries, gallery, ids, ids.clone()),
        Work("product", 2.0 * size.N * size.N * size.D, 0),
        differentiable=False,
        # Scores that are equal in fp32 only move a rank by one.
        value=lambda found: found[0].double(),
        tolerance=1e-2,
    )
    compare(row, ops.ranks, eager.ranks, eager=plain(eager.ranks), compile=compiled(eager.ranks))


def mean_score(image: Tensor, text: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return the function that computes the mean score of drawn negatives."""

    def value(found: Sequence[Tensor]) -> Tensor:
        texts, images = found
        return ((image * text[texts]).sum(1).mean() + (image[images] * text).sum(1).mean()) / 2

    return value


@pytest.mark.parametrize("size", sizes(LARGE), ids=str)
@pytest.mark.parametrize("strategy", ["multinomial", "hardest"])
def bench_sample_negatives(compare, sized, device, size, strategy):
    size = sized(size)
    image, text = inputs.paired(size, device)
    generator = torch.Generator(device).manual_seed(0)
    options = {"strategy": strategy, "temperature": TEMPERATURE}
    sampler = mining.HardNegativeSampler(**options)
    row = Row(
        "sample_negatives",
        size,
        (image, text),
        Work("product", 2.0 * size.N * size.N * size.D, 0),
        case=strategy,
        differentiable=False,
        value=mean_score(image, text),
        tolerance=1e-5 if strategy == "hardest" else 2.0 / size.N**0.5,
    )
    formula = partial(eager.sample_negatives, **options, generator=generator)
    compare(row, partial(sampler, generator=generator), formula, eager=plain(formula))
