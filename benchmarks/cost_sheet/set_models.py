"""Cost models of the kernels of sets of rows: late interaction and cross attention."""

import math

from benchmarks.cost_sheet.counts import Count, Launch
from benchmarks.cost_sheet.kernels import model, passes, rounding
from benchmarks.cost_sheet.rates import RESIDENT


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


def columns_of(launch: Launch) -> float:
    """Return the columns of the programs of a kernel over blocks of queries."""
    return launch.QUERIES * padded(launch.Q, launch.COLUMNS)


@model("_attention._norms_kernel")
def _norms(launch: Launch) -> Count:
    # A product is scaled twice, masked, clipped, squared and added; a softmax takes an exponential.
    elements = launch.programs * columns_of(launch) * launch.ROWS
    moved = launch.operands["products"].bytes + launch.operands["norm"].bytes
    found = over_pairs(launch, elements, 10, moved)
    return found._replace(exponentials=elements * (launch.NORM == "softmax"))


@model("_attention._attention_kernel")
def _attention(launch: Launch) -> Count:
    # Two passes scale, mask, clip and divide a product [12 each] and take an exponential.
    elements = launch.programs * launch.COLUMNS * padded(launch.C, launch.ROWS)
    moved = launch.operands["products"].bytes + launch.operands["alpha"].bytes
    found = over_pairs(launch, elements, 30, moved)
    each = 2 + 2 * (launch.NORM == "softmax")
    return found._replace(
        exponentials=elements * each, l2=found.l2 + launch.operands["products"].bytes
    )


@model("_attention._cosine_kernel")
def _cosine(launch: Launch) -> Count:
    # The rows of no batch here cancel, which would take the fp64 loop. A row of the Gram matrix
    # takes C multiplications, and a load of an entry for every 4 of them.
    elements = launch.programs * launch.COLUMNS * padded(launch.C, launch.ROWS)
    moved = (1 + launch.GRADIENTS) * launch.operands["alpha"].bytes
    return over_pairs(launch, elements, 6 + 1.25 * launch.C, moved)


@model("_attention_gradients._weights_kernel")
def _attention_weights(launch: Launch) -> Count:
    # A norm over the query takes two passes. Each scales a product, normalises it and forms the
    # gradient from alpha and the Gram matrix [30]; the last also writes the weights and outer
    # products.
    elements = launch.programs * columns_of(launch) * padded(launch.C, launch.ROWS)
    passes = 1 if launch.NORM == "none" else 2
    read = 3 * launch.operands["alpha"].bytes
    written = launch.operands["alpha"].bytes + launch.operands["weights"].bytes
    instructions = 30 * passes + 12 + 4 * launch.PARTS + rounding(launch)
    found = over_pairs(launch, elements, instructions, read + written)
    exponentials = elements * passes * (launch.NORM == "softmax")
    return found._replace(l2=passes * read + written, exponentials=exponentials)


@model(
    "_split_weights._split_kernel",
    "_split_weights._unit_kernel",
    "_attention_gradients._of_cosines_kernel",
    "cross_attention._aggregate_kernel",
)
def _chunk(launch: Launch) -> Count:
    return passes(launch)
