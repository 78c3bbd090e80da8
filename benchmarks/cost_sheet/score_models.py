"""Cost models of the kernels over tiles of pairwise scores.

Instructions and exponentials per score are counted in the kernels' source [E]. Two assumptions
replace values: one tile of candidates holds the positives of a tile of queries, and distances
cancel on the diagonal only.
"""

import math
from typing import Any

from benchmarks.cost_sheet.counts import Count, Launch, unique_bytes
from benchmarks.cost_sheet.kernels import gathered, model, passes, rounding, scores
from benchmarks.cost_sheet.rates import PROCESSORS, RESIDENT


@model("_hardest._hardest_kernel")
def _hardest(launch: Launch) -> Count:
    sides = launch.OF_ROWS + launch.OF_COLUMNS
    ids = 2 if launch.HAS_IDS else 0
    instructions = 7 + ids + sides * (4 + 2 * launch.BOUNDED)
    return scores(launch, launch.N, launch.M, instructions)


@model("_screening._screen_kernel")
def _screen(launch: Launch) -> Count:
    # The best score, its index and the second best, on both sides.
    instructions = 21 + 2 * launch.HAS_IDS + 2 * launch.FACTORS
    return scores(launch, launch.N, launch.M, instructions)


@model("_rescoring.rescore_kernel")
def _rescore(launch: Launch) -> Count:
    # Tile maxima are read twice. Two tiles may contain the maximum of an anchor [E].
    left = [each.bytes for name, each in launch.operands.items() if _is_tile_maximum(name)]
    anchors = launch.N + launch.M
    found = gathered(launch, 3.0 * anchors, 0, launch.D, launch.x.dtype)
    return found._replace(hbm=found.hbm + 2.0 * sum(left), l2=found.l2 + 2.0 * sum(left))


def _is_tile_maximum(name: str) -> bool:
    return name.endswith(("_key", "_index", "_second")) and "found" not in name


@model("_rescoring.undecided_tiles_kernel", "_rescoring.undecided_maxima_kernel")
def _undecided(launch: Launch) -> Count:
    # No anchor is undecided: a program reads a count and returns, 0.3 us on a processor [E].
    return Count(launch.kernel, True, seconds=launch.programs / PROCESSORS * 0.3e-6)


def in_gluon(launch: Launch, instructions: float, exponentials: float = 0) -> Count:
    """Count a persistent kernel of 128 x 256 tiles, with tensor descriptors as operands.

    The epilogue of one warpgroup overlaps the products of the other.
    """
    x = launch.x._replace(shape=(launch.PARTS, launch.N, launch.x.shape[-1]))
    tile = {"ROWS": 128, "COLUMNS": 256, "x": x}
    launch = launch._replace(arguments={**launch.arguments, **tile})
    found = scores(launch, launch.N, launch.M, instructions, exponentials)
    return found._replace(exposed=0.0)


@model("gluon.hardest._hardest_kernel")
def _gluon_hardest(launch: Launch) -> Count:
    # A maximum runs at half the rate: two instructions.
    return in_gluon(launch, 9 + 4 * launch.HAS_IDS)


@model("gluon.log_sum_exp._log_sum_exp_kernel")
def _gluon_log_sum_exp(launch: Launch) -> Count:
    return in_gluon(launch, 13 + 4 * launch.HAS_IDS + 2 * launch.FACTORS, 1)


def shared_exponentials(launch: Launch) -> int:
    """Return the exponentials per logit: one shared by its row and column, or one for each.

    The log-sum-exps of a tile are assumed to differ by less than 60.
    """
    return 1 if "FACTORS" in launch.arguments else 2


@model("log_sum_exp._forward_kernel")
def _log_sum_exp_forward(launch: Launch) -> Count:
    instructions = 15 + 3 * launch.HAS_IDS + 2 * launch.arguments.get("FACTORS", False)
    return scores(launch, launch.N, launch.M, instructions, shared_exponentials(launch))


@model("log_sum_exp._softmax_weights_kernel")
def _log_sum_exp_weights(launch: Launch) -> Count:
    stored = 2 * launch.arguments.get("WEIGHTS", 1)
    factors = 4 * launch.arguments.get("FACTORS", False)
    # With sorted ids few tiles have masks. 12 instructions besides stores: scale, base, an
    # exponential of five, coefficients, slope, scale again.
    instructions = 12 + stored + factors + rounding(launch)
    return scores(launch, launch.R, launch.M, instructions, shared_exponentials(launch))


@model("sigmoid._forward_kernel")
def _sigmoid_forward(launch: Launch) -> Count:
    # The logarithm as a polynomial, or a logarithm and a division.
    instructions, special = (20, 1) if "FACTORS" in launch.arguments else (25, 3)
    return scores(launch, launch.N, launch.M, instructions, special)


@model("sigmoid._sigmoid_weights_kernel")
def _sigmoid_weights(launch: Launch) -> Count:
    if "WHOLE" not in launch.arguments:
        return scores(launch, launch.R, launch.M, 20, 2)
    stored = 14 + rounding(launch)
    instructions = 6 + 13 * launch.WHOLE + stored * launch.WEIGHTS + 2 * launch.FACTORS
    return scores(launch, launch.R, launch.M, instructions, 1 + launch.WEIGHTS)


@model("_logistic.sigmoid_totals_kernel")
def _sigmoid_totals(launch: Launch) -> Count:
    return chained(launch, launch.tiles)


@model("_products._weight_scale_kernel")
def _weight_scale(launch: Launch) -> Count:
    vectors = (each.elements for each in launch.operands.values())
    return chained(launch, sum(vectors))


@model("_score_gradients._gradient_scale_kernel")
def _gradient_scale(launch: Launch) -> Count:
    return chained(launch, launch.N)


def chained(launch: Launch, elements: float) -> Count:
    """Count a program with a sequential loop over blocks of elements: 0.7 us per block [E]."""
    chain = math.ceil(elements / launch.BLOCK) * 0.7e-6
    return passes(launch)._replace(seconds=chain)


@model("sum_of_hinges._hinges_kernel")
def _sum_of_hinges(launch: Launch) -> Count:
    stored = 2 * launch.arguments.get("WEIGHTS", 0)
    if stored and not launch.UNIFORM:
        stored += rounding(launch)
    return scores(launch, launch.R, launch.M, 14 + stored)


def metric_of(launch: Launch, N: int, M: int, instructions: float, share: float) -> Count:
    """Count tiles of a metric: l1 subtracts, and distances add the sums of chunks in registers."""
    differences = 1.0 if launch.METRIC == "l1" else 0.0
    if launch.METRIC in ("l2", "sqeuclidean"):
        instructions += 12 + launch.D / launch.DEPTH
    if differences == 1:
        launch = launch._replace(arguments={**launch.arguments, **_of_raw(launch)})
    return scores(launch, N, M, instructions, float(launch.METRIC == "l2"), share, differences)


def _of_raw(launch: Launch) -> dict[str, Any]:
    return {"x": launch.raw_x, "y": launch.raw_y, "PARTS": 1}


@model("intra_modal._triangle_kernel", "_upper_triangle.band_sums_kernel")
def _triangle(launch: Launch) -> Count:
    tiles = math.ceil(launch.N / launch.ROWS)
    return metric_of(launch, launch.N, launch.N, 14, (tiles + 1) / (2 * tiles))


@model("_upper_triangle.stored_band_sums_kernel")
def _stored_bands(launch: Launch) -> Count:
    read = launch.operands["distance"].bytes
    hbm = read if read > RESIDENT else 0
    return Count(launch.kernel, True, instructions=14.0 * read / 4, hbm=hbm, l2=read)


@model("_close_distances._close_distances_kernel")
def _close_distances(launch: Launch) -> Count:
    # Only the diagonal is close: a pair of every row.
    pairs = min(launch.N, launch.M)
    reads = 8.0 * pairs * launch.raw_width + 4.0 * launch.SIDE * pairs
    return Count(
        launch.kernel, True, instructions=2.0 * pairs * launch.raw_width,
        l2=launch.operands["has_close"].bytes + reads,
    )  # fmt: skip


@model("_score_gradients._score_gradients_kernel")
def _score_gradients(launch: Launch) -> Count:
    pairs = launch.R * launch.M
    stored = launch.operands["weights"].bytes
    read = 0.0
    if launch.SOURCE == "given":
        read = float(launch.R * launch.M * launch.given.dtype.itemsize)
    elif launch.SOURCE == "bits":
        read = 2.0 * launch.R * launch.M / 8
    if launch.SOURCE in ("bounds", "ranks") or launch.CLOSE:
        read += launch.key.bytes
    if launch.SOURCE == "ranks":
        read += launch.other.bytes
    total = stored + read
    hbm = total if total > RESIDENT else 0
    special = float(launch.METRIC == "l2")
    return Count(
        launch.kernel, True, instructions=(24.0 + rounding(launch)) * pairs,
        exponentials=special * pairs, hbm=hbm, l2=total,
    )  # fmt: skip


@model("_distance_gradients._distance_gradients_kernel")
def _distance(launch: Launch) -> Count:
    # No pair is close: `close` is not read.
    names = ("x", "product", "out", "has_close", "sums")
    size = sum(each.bytes for name, each in launch.operands.items() if name in names)
    return Count(launch.kernel, True, hbm=size, l2=size)


@model("_metrics._matrix_kernel")
def _matrix(launch: Launch) -> Count:
    return metric_of(launch, launch.N, launch.M, 4, 1.0)


@model("_metrics._weighted_differences_kernel")
def _weighted_differences(launch: Launch) -> Count:
    work = float(launch.programs) * launch.ROWS * launch.DEPTH * launch.M
    reads = launch.programs * launch.M * (launch.DEPTH + launch.ROWS) * 4.0
    size = unique_bytes(launch.operands)
    return Count(
        launch.kernel, True, instructions=work * (4 if launch.SIGN else 2), hbm=size, l2=reads
    )


@model("sample_negatives._draw_kernel")
def _draw(launch: Launch) -> Count:
    # Ten Philox rounds yield four words, for two pairs in both directions; noise takes two logs.
    return scores(launch, launch.N, launch.M, 75, 4)


@model("ranks._positives_kernel")
def _rank_positives(launch: Launch) -> Count:
    return scores(launch, launch.Q, 2 * launch.COLUMNS, 14)


@model("_id_order._sort_kernel")
def _id_order(launch: Launch) -> Count:
    # Queries are compared with both sides, candidates with their own; a 64-bit comparison is two.
    Q, G = launch.Q, launch.G
    compared = 8.0 * Q * Q + 8.0 * Q * G + 8.0 * G * G
    rows = launch.BLOCK * launch.programs / 2
    return Count(
        launch.kernel, True, instructions=compared, l2=8.0 * rows / launch.BLOCK * (Q + 2 * G)
    )


@model("_id_order._search_kernel")
def _rank_spans(launch: Launch) -> Count:
    # Two binary searches, each a chain of L2 loads.
    steps = 2.0 * launch.STEPS
    size = launch.Q * (32.0 * steps + 60)
    return Count(
        launch.kernel, True, l2=size, instructions=10 * steps * launch.Q, seconds=6e-7 * steps
    )


@model("ranks._count_kernel")
def _rank_counts(launch: Launch) -> Count:
    return scores(launch, launch.Q, launch.G, 24)


@model("_positives._positives_kernel")
def _own_positives(launch: Launch) -> Count:
    return scores(launch, launch.M, launch.COLUMNS, 3)


@model("_synthesis_kernels.logits_kernel")
def _logits(launch: Launch) -> Count:
    return scores(launch, launch.R, launch.M, 4)
