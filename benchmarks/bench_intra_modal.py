"""The intra-modal constraint, at a given share of pairs inside its band.

Least work for cosine: half a product forward (the matrix is symmetric), one product backward.
Least work for l1: two instructions per element of every pair forward, and three per element of a
pair inside the band backward.
"""

from functools import partial
from typing import Any

import pytest

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, keops, plain
from benchmarks.shapes import LARGE, USUAL, sizes
from itm_kernels import functional

# Sparse: IMC's default bounds, which hold 5 % of the pairs of our data. Dense: cosines above 0.
COSINE = {
    ("paper", "sparse"): (0.05, 0.5),
    ("official", "sparse"): (0.05, 0.5),
    ("paper", "dense"): (0.05, 1.0),
    ("official", "dense"): (0.05, 0.0),
}
# The official bounds are ranks: the defaults keep the pairs between ranks of 5 % and 50 %.
L1 = {("paper", "sparse"): 0.05, ("paper", "dense"): 0.5, ("official", "defaults"): None}


@pytest.mark.parametrize("size", sizes(LARGE), ids=str)
@pytest.mark.parametrize(("mode", "name"), COSINE)
def bench_cosine(compare, sized, compiled, device, size, mode, name):
    size = sized(size)
    lower, upper = COSINE[mode, name]
    x = inputs.paired(size, device)[0]
    inside = (upper, 1 - lower) if mode == "official" else (1 - upper, 1 - lower)
    product = 2.0 * size.N * size.N * size.D
    options: dict[str, Any] = {"metric": "cosine", "mode": mode, "lower": lower, "upper": upper}
    row = Row(
        "intra_modal",
        size,
        (x,),
        Work("product", product / 2, product),
        case=f"cosine {mode} {name}",
        facts={"density": inputs.density(x, *inside)},
    )
    formula = partial(eager.intra_modal, **options)
    compare(
        row,
        partial(functional.intra_modal_constraint, **options),
        formula,
        eager=plain(formula),
        compile=compiled(formula),
    )


@pytest.mark.parametrize("size", sizes(USUAL), ids=str)
@pytest.mark.parametrize(("mode", "name"), L1)
def bench_l1(compare, sized, compiled, device, size, mode, name):
    size = sized(size)
    x = inputs.paired(size, device)[0]
    share = L1[mode, name]
    lower, upper = (0.05, 0.5) if share is None else inputs.band(x, share)
    share = share or upper - lower
    pairs = size.N * size.N / 2 * size.D
    options: dict[str, Any] = {"metric": "l1", "mode": mode, "lower": lower, "upper": upper}
    row = Row(
        "intra_modal",
        size,
        (x,),
        Work("instructions", 2 * pairs, 3 * pairs * share),
        case=f"l1 {mode} {name}",
        facts={"density": share},
    )
    formula = partial(eager.intra_modal, **options)
    others = {"keops": partial(keops.intra_modal_l1, lower, upper)} if mode == "paper" else {}
    compare(
        row,
        partial(functional.intra_modal_constraint, **options),
        formula,
        eager=plain(formula),
        compile=compiled(formula),
        **others,
    )
