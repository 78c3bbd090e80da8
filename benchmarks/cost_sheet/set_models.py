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
