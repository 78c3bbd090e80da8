"""Cost models of the memory-bound kernels: passes over rows, and gathers of rows."""

from benchmarks.cost_sheet.counts import Count, Launch
from benchmarks.cost_sheet.kernels import gathered, model, passes


@model("max_of_hinges._hinges_kernel")
def _hinges(launch: Launch) -> Count:
    keys = [each.bytes for name, each in launch.operands.items() if name.endswith(("key", "index"))]
    found = gathered(launch, 4 * launch.M, 0, launch.D, launch.image.dtype)
    return found._replace(hbm=found.hbm + sum(keys))


@model("hardest_negatives._candidate_scores_kernel")
def _winners(launch: Launch) -> Count:
    found = gathered(launch, 2 * launch.A, 0, launch.D, launch.anchor_rows.dtype)
    keys = launch.operands["key"].bytes + launch.operands["index"].bytes
    return found._replace(hbm=found.hbm + keys)


@model("hardest_negatives._positives_kernel")
def _positives(launch: Launch) -> Count:
    return gathered(launch, 2 * launch.M, 0, launch.D, launch.image.dtype)


@model("_segment_sum._gradients_kernel")
def _segment_sums(launch: Launch) -> Count:
    targets = launch.N + (0 if launch.ONLY_IMAGES else launch.M)
    own = 0 if launch.ONLY_IMAGES else 2 * targets
    entries = launch.source.elements
    base = launch.base.bytes if launch.ONLY_IMAGES else 0
    found = gathered(launch, entries + own, targets, launch.D, launch.image.dtype)
    return found._replace(hbm=found.hbm + base + 12.0 * (entries + own))


@model("_segment_sum._chunks_kernel")
def _segment_chunks(launch: Launch) -> Count:
    # No row has enough entries for a separate sum of a chunk.
    size = launch.ordered.bytes
    return Count(launch.kernel, True, l2=size, instructions=20.0 * launch.E)


@model("_coo_entries._sort_kernel")
def _order(launch: Launch) -> Count:
    compared = launch.programs * launch.BLOCK * launch.E / 2
    return Count(
        launch.kernel, True, instructions=6.0 * compared, l2=4.0 * launch.programs * launch.E / 2
    )


@model("kmeans_plus_plus._draw_kernel")
def _kmeans_draw(launch: Launch) -> Count:
    found = passes(launch)
    return found._replace(
        instructions=3.0 * launch.B * launch.M * launch.D, hbm=launch.x.bytes, l2=launch.x.bytes
    )


@model("row_keys._keys_kernel")
def _row_keys(launch: Launch) -> Count:
    # A 64-bit product per element, and 25 instructions for its coefficient, shared by all rows.
    return passes(launch, instructions=12 + 25 / launch.ROWS)


@model(
    "ranks._ranks_kernel",
    "_operands._split_kernel",
    "_metrics._squared_norms_kernel",
    "unit_rows._forward_kernel",
    "unit_rows._backward_kernel",
    "_log_sums._join_tiles_kernel",
    "cross_entropy._forward_kernel",
    "cross_entropy._backward_kernel",
    "max_of_hinges._entries_kernel",
    "hardest_negatives._entries_kernel",
    "_coo_entries._by_target_kernel",
    "_upper_triangle.band_totals_kernel",
    "_hinge_gradients._hinge_gradients_kernel",
    "_screening._norms_kernel",
    "_synthesis_logits._cosine_kernel",
    "_anchor_gradient._gradient_kernel",
    "_anchor_gradient._weights_kernel",
    "sum_of_hinges._totals_kernel",
    "_operand_gradients._gradient_kernel",
    "_scaled_operands._scale_kernel",
    "sample_negatives._select_kernel",
)
def _passes(launch: Launch) -> Count:
    return passes(launch)


def over_scores(launch: Launch, instructions: float, exponentials: float) -> Count:
    """Count a kernel that reads a given score matrix once, and may write its gradient."""
    found = passes(launch, 0, 0)
    return found._replace(
        instructions=instructions * launch.N * launch.M,
        exponentials=exponentials * launch.N * launch.M,
    )


@model("log_sum_exp_from_scores._forward_kernel")
def _sums_of_scores(launch: Launch) -> Count:
    # Two exponentials; a thread rescales the sum of a row once per VECTOR columns. [Counted in the
    # machine code of complete tiles without equal ids.]
    return over_scores(launch, 15 + 8 / launch.VECTOR, 2 + 1 / launch.VECTOR)


@model("log_sum_exp_from_scores._backward_kernel")
def _gradient_of_sums(launch: Launch) -> Count:
    return over_scores(launch, 20, 2)


@model("_joined_sums.join_sums_kernel")
def _join_sums(launch: Launch) -> Count:
    size = launch.row.bytes + launch.column.bytes  # of the scores only those of positives
    return Count(launch.kernel, True, hbm=size, l2=size)


@model("sigmoid_from_scores._sigmoid_kernel")
def _sigmoid_of_scores(launch: Launch) -> Count:
    return over_scores(launch, 20, 1 + launch.GRADIENT)


@model("_score_maxima._maxima_kernel")
def _maxima_of_scores(launch: Launch) -> Count:
    # The key of a score, and its maxima on both sides.
    sides = launch.OF_ROWS + launch.OF_COLUMNS
    found = over_scores(launch, 8 + sides * (3 + 3 * launch.BOUNDED), 0)
    return found._replace(instructions=found.instructions * launch.R / launch.N)


@model("sum_of_hinges_from_scores._sums_kernel")
def _sums_of_hinges(launch: Launch) -> Count:
    found = over_scores(launch, 3 + 4 * (launch.OF_ROWS + launch.OF_COLUMNS), 0)
    return found._replace(instructions=found.instructions * launch.R / launch.N)


@model("sum_of_hinges_from_scores._gradient_kernel")
def _gradient_of_hinges(launch: Launch) -> Count:
    # A comparison and a selection for the text, and for every pair of the image.
    return over_scores(launch, 6 + 5 * launch.M / launch.N, 0)


@model("max_of_hinges_from_scores._hinges_kernel")
def _hinges_of_maxima(launch: Launch) -> Count:
    # All keys are read, and of the scores those of one thread per row and of one tile per column.
    size = launch.row.bytes + launch.row_first.bytes + launch.column.bytes
    size += 32.0 * launch.M * (launch.ROWS + 1)
    return Count(launch.kernel, True, hbm=size, l2=size)


@model("max_of_hinges_from_scores._gradient_kernel", "_given_scores._positives_kernel")
def _of_pairs(launch: Launch) -> Count:
    size = 32.0 * 3 * launch.M  # sectors of the matrix
    return Count(launch.kernel, True, hbm=size, l2=size)


@model("sum_of_hinges_from_scores._join_kernel")
def _join_hinges(launch: Launch) -> Count:
    return passes(launch)
