"""Cost models of the kernels of sets of rows: late interaction and cross attention."""

import math

from benchmarks.cost_sheet.counts import Count, Launch, unique_bytes
from benchmarks.cost_sheet.kernels import model, passes, rounding
from benchmarks.cost_sheet.rates import RESIDENT, ceiling_of


def padded(size: int, to: int) -> int:
    """Return a size that is a multiple of another."""
    return math.ceil(size / to) * to


def over_pairs(launch: Launch, elements: float, instructions: float, moved: float) -> Count:
    """Count a kernel that reads or writes the numbers of a chunk of pairs once."""
    return Count(
        launch.kernel,
        triton=True,
        instructions=elements * instructions,
        hbm=moved if moved > RESIDENT else 0,
        l2=moved,
    )


@model("_row_sets._prepare_kernel", "_row_set_gradients._gradient_kernel")
def _rows(launch: Launch) -> Count:
    return passes(launch)


@model("late_interaction._best_kernel")
def _best(launch: Launch) -> Count:
    # A product is addressed, loaded, scaled, compared three times and selected twice [counted in
    # the source]. Padding: rows to multiples of ROWS, queries to a power of two.
    columns = launch.QUERIES * padded(launch.Q, launch.COLUMNS)
    elements = launch.programs * columns * padded(launch.C, launch.ROWS)
    return over_pairs(launch, elements, 12, launch.operands["products"].bytes)


@model("late_interaction._weights_kernel")
def _weights(launch: Launch) -> Count:
    # A comparison, a product, a selection, and for each part a conversion, a store and a rest.
    elements = launch.programs * launch.COLUMNS * padded(launch.C, launch.ROWS)
    instructions = 4 + 4 * launch.PARTS + rounding(launch)
    return over_pairs(launch, elements, instructions, launch.operands["weights"].bytes)


@model("_attention._attention_kernel")
def _attention(launch: Launch) -> Count:
    # A product is scaled twice, masked, clipped, squared and added for its norm [10]. Attention
    # scales, masks, clips and divides it, takes an exponential and adds twice [18]; without a bound
    # a pass for the maximum precedes [12]. A row of the Gram matrix takes C multiplications, and a
    # load of an entry for every 4 of them; scores need half of the matrix. Gradients sum two
    # products in fp64: a conversion at 16 per clock, an addition at half the rate of fp32 [2 x 10].
    # No batch here has rows that cancel, which would take the fp64 loop.
    C, Q, (n, programs) = launch.C, launch.Q, launch.grid
    rows, queries = n * padded(C, launch.ROWS), programs * launch.QUERIES
    attended = rows * programs * padded(launch.QUERIES * Q, launch.COLUMNS)
    entries = C if launch.GRADIENTS else (C + launch.ROWS) / 2
    sums = 26 if launch.GRADIENTS else 6
    instructions = attended * ((18 if launch.BOUNDED else 30) + sums + 1.25 * entries)
    exponentials = attended * (1 + (launch.NORM == "softmax")) * (1 if launch.BOUNDED else 2)
    if launch.NORM != "none":
        of_norms = rows * queries * padded(Q, launch.OF_QUERY)
        instructions += 10 * of_norms
        exponentials += of_norms * (launch.NORM == "softmax")
    # A block of columns reads products again from the L1, a program from the L2.
    size = launch.operands["products"].bytes
    hbm, l2 = size, (3 if launch.NORM == "none" else 4) * size
    if launch.GRADIENTS:
        # A product is scaled and normalised, and its gradient formed from alpha and the Gram matrix
        # [28]; twice for queries longer than a step. Then weights and outer products are written.
        weighted = rows * queries * padded(Q, launch.OF_WEIGHTS)
        passes = 1 if launch.WHOLE or launch.NORM == "none" else 2
        instructions += weighted * (28 * passes + 12 + 4 * launch.PARTS + rounding(launch))
        exponentials += weighted * passes * (launch.NORM == "softmax")
        # Numbers of columns: cosines and three multiples, then their gradients and a multiple.
        columns, weights = 6 * size / C, launch.operands["weights"].bytes
        hbm += 2 * size + weights + columns
        l2 += (3 * passes + 2) * size + weights + 2 * columns
    return Count(
        launch.kernel,
        triton=True,
        instructions=instructions,
        exponentials=exponentials,
        hbm=hbm if size > RESIDENT else 0,
        l2=l2,
    )


@model("_attention_gram._through_gram_kernel")
def _through_gram(launch: Launch) -> Count:
    # Two parts of a Gram matrix, padded to whole steps, times tiles of rows.
    n, columns, steps = launch.grid
    flop = 4.0 * n * columns * launch.COLUMNS * (steps * launch.ROWS) ** 2
    size, sums = unique_bytes(launch.operands), launch.operands["into"].bytes
    return Count(
        launch.kernel,
        triton=True,
        flop=flop,
        depth=launch.ROWS,
        ceiling=ceiling_of("half", launch.ROWS, launch.COLUMNS, 4),
        instructions=launch.programs * launch.ROWS * (launch.COLUMNS + 10 * launch.ROWS * steps),
        exposed=0.5,
        hbm=size + sums if size > RESIDENT else 0,
        l2=size + sums,
    )


@model("_split_weights._split_kernel", "_split_weights._unit_kernel")
def _chunk(launch: Launch) -> Count:
    return passes(launch)
