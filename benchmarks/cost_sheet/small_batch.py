"""Small batches in a CUDA graph: the package's CUDA kernels compared with its Triton kernels.

Launches with Triton are traced forward and backward, including those of ATen (`trace.py`); launches
with CUDA are listed in `small_operators.py` and `whole_losses.py`. A CUDA operator is not worth its
lines if Triton takes less than 1.5 times as long at every size.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple
from unittest.mock import patch

from benchmarks.cost_sheet import rates, trace
from benchmarks.cost_sheet.counts import Count, Launch
from benchmarks.cost_sheet.cuda_models import Batch
from benchmarks.cost_sheet.kernels import waves
from benchmarks.cost_sheet.predict import terms
from benchmarks.cost_sheet.sheet import FOLDER
from benchmarks.cost_sheet.small_operators import OPERATORS as PARTS
from benchmarks.cost_sheet.small_operators import D, step
from benchmarks.cost_sheet.whole_losses import WHOLE
from benchmarks.tables import table
from itm_kernels import backends

SIZES, PRECISIONS = (128, 256, 512), ("bf16", "fp32")
WORTH, EVEN = 1.5, 0.95
FILE = FOLDER / "small-batch.md"
OPERATORS = {**PARTS, **WHOLE}
# Operators exempt from the rule.
KEPT = {"intra_modal, l1": "stays: l1 cannot be computed by products, and serves every size"}


def _along(launch: Launch, size: str = "COLUMNS") -> float:
    """Return the number of chunks of D in a program's loop."""
    return math.ceil(_columns(launch) / launch.arguments[size])


def _columns(launch: Launch) -> int:
    return int(launch.arguments.get("D") or launch.operands["x"].shape[-1])


# Trips of a Triton program beyond those of every launch, counted in the kernels' source: loops that
# load but multiply no tiles wait once per iteration [E].
CHAINS: dict[str, Callable[[Launch], float]] = {
    "max_of_hinges._hinges_kernel": lambda launch: 1 + 3 * _along(launch, "DEPTH"),
    "hardest_negatives._candidate_scores_kernel": lambda launch: 1 + _along(launch, "DEPTH"),
    "hardest_negatives._positives_kernel": lambda launch: _along(launch, "DEPTH"),
    "_coo_entries._sort_kernel": lambda launch: math.ceil(launch.M / launch.CHUNK),
    "_segment_sum._gradients_kernel": lambda launch: 6,
    "_segment_sum._chunks_kernel": lambda launch: 1,
    "_scaled_operands._scale_kernel": _along,
    "_operand_gradients._gradient_kernel": _along,
    "_metrics._squared_norms_kernel": lambda launch: _along(launch, "DEPTH"),
    "_distance_gradients._distance_gradients_kernel": lambda launch: 3,
    "kmeans_plus_plus._draw_kernel": lambda launch: 1 + _along(launch, "DEPTH"),
    "_metrics._weighted_differences_kernel": lambda launch: math.ceil(launch.M / launch.COLUMNS),
}


class Times(NamedTuple):
    """Predicted microseconds of a step in a graph, and its numbers of launches."""

    cuda: float
    overlapped: float  # with programmatic dependent launch
    triton: float
    between: tuple[float, float]  # ratio at the lowest and the highest time of a node
    launches: tuple[int, int]

    @property
    def ratio(self) -> float:
        """Triton's time over CUDA's."""
        return self.triton / self.cuda


def seconds(count: Count, node: float) -> float:
    """Return the time of a launch in a graph: a node, its first and last trip, and its work."""
    if not count.triton and count.flop:  # the library uses 64 x 64 tiles for a small product
        tiles = math.ceil(count.flop / 2 / count.depth / 64**2)
        count = count._replace(ceiling=waves(tiles) * rates.CEILINGS[64, 64])
    work = sum(terms(count._replace(launches=0), rates.H200).values())
    return count.launches * (node + rates.TRIPS * rates.L2_TRIP) + work


def in_graph(counts: Iterable[Count], node: float = rates.GRAPH_NODE) -> float:
    """Return the microseconds of consecutive launches in a graph."""
    return 1e6 * sum(seconds(count, node) for count in counts)


def of_triton(name: str, N: int, precision: str) -> list[Count]:
    """Return the traced launches of a step with Triton kernels."""
    operator = OPERATORS[name]
    with trace.precision_of(precision) as dtype:
        inputs = operator.inputs(N, dtype, "meta")
        watch = trace.Watch()
        watch.inputs(*inputs)
        with patch.dict(backends.PREFERENCE, meta=("triton",)), trace.noting(watch), watch:
            step(operator.run, inputs, "triton")
    launches = iter(watch.launches)
    return [alone(each, next(launches)) if each.triton else each for each in watch.counts]


def alone(count: Count, launch: Launch) -> Count:
    """Return the work of a launch of few programs: processors are idle, and loops wait."""
    used = min(launch.programs, rates.PROCESSORS)
    chain = CHAINS.get(count.name, lambda launch: 0)(launch) * rates.L2_TRIP
    reads = count.l2 / used / rates.L2_OF_A_PROCESSOR / rates.CLOCK
    return count._replace(
        instructions=count.instructions / waves(launch.programs),
        exponentials=count.exponentials / waves(launch.programs),
        hbm=0,  # rows are in the L2
        seconds=max(count.seconds, chain, reads),
    )


def of_cuda(name: str, N: int, precision: str) -> list[Count]:
    """Return the launches of a step with CUDA kernels."""
    return OPERATORS[name].launches(Batch(N, trace.PRECISIONS[precision][0].itemsize))


def times(name: str, N: int, precision: str) -> Times:
    """Return the predicted times of an operator with both kinds of kernels."""
    cuda, triton = of_cuda(name, N, precision), of_triton(name, N, precision)
    least, most = (in_graph(triton, node) / in_graph(cuda, node) for node in rates.GRAPH_NODES)
    launches = sum(each.launches for each in cuda), sum(each.launches for each in triton)
    overlapped = in_graph(cuda, rates.DEPENDENT_NODE)
    return Times(in_graph(cuda), overlapped, in_graph(triton), (least, most), launches)


Row = dict[tuple[str, int], Times]


def rows() -> dict[str, Row]:
    """Return the predicted times of every operator at every size and precision."""
    every = [(precision, N) for precision in PRECISIONS for N in SIZES]
    return {name: {(p, N): times(name, N, p) for p, N in every} for name in OPERATORS}


def goes(row: Row) -> bool:
    """Return whether Triton is so close at every size that CUDA is not worth its lines."""
    return all(found.ratio < WORTH for found in row.values())


def complaints(found: dict[str, Row]) -> list[str]:
    """Return the operators whose CUDA kernels are not worth their lines."""
    return [
        f"{name}: Triton is within {WORTH} times CUDA's time at every size: remove its CUDA kernels"
        for name, row in found.items()
        if goes(row) and name not in KEPT
    ]


# -- the file --------------------------------------------------------------------------------------


def markdown(found: dict[str, Row]) -> str:
    """Return the tables as Markdown."""
    head = ["operator", "launches"]
    for N in SIZES:
        head += [f"N = {N}: CUDA", "overlapping", "Triton", "Triton / CUDA"]
    parts = [HEAD]
    for precision in PRECISIONS:
        lines = []
        for name, row in found.items():
            cells = [name, "{} | {}".format(*row[precision, SIZES[0]].launches)]
            for N in SIZES:
                one = row[precision, N]
                least, most = sorted(one.between)
                numbers = (f"{time:.1f}" for time in (one.cuda, one.overlapped, one.triton))
                cells += [*numbers, f"{one.ratio:.2f} ({least:.2f} to {most:.2f})"]
            lines.append([cell.replace("|", "\\|") for cell in cells])
        parts.append(f"## {precision}\n\n{table(head, lines)}")
    verdicts = [
        [name, KEPT.get(name) or ("goes" if goes(row) else "stays"), _up_to(row)]
        for name, row in found.items()
    ]
    head = [
        "operator",
        "its CUDA kernels",
        "rows up to which they are at least as fast (mean of both precisions)",
    ]
    parts.append(f"## Decisions\n\n{table(head, verdicts)}")
    stated = table(["rate", "value", "source"], [list(one) for one in rates.OF_SMALL_BATCHES])
    return "\n".join([*parts, f"## Rates\n\n{stated}"])


def _up_to(row: Row) -> str:
    """Return the largest size up to which CUDA is at least as fast, in the geometric mean."""
    first = 0
    for N in SIZES:
        if math.prod(row[precision, N].ratio for precision in PRECISIONS) < EVEN**2:
            break
        first = N
    return str(first or "none")


HEAD = f"""\
# Predicted, not measured: CUDA and Triton kernels for small batches in a CUDA graph

`make cost-sheet UPDATE=1` writes this file. Times are microseconds per step, forward and backward,
on an H200, D = {D}. The step is replayed as a graph, so no Python runs between launches. Launches
are CUDA's | Triton's at N = {SIZES[0]}, including ATen's. "Overlapping" is CUDA's time with
programmatic dependent launch. The ratio assumes one microsecond per node; the range in parentheses
uses the times published for other machines. CUDA's launches are counted on the emulator, their
waits and work in the source (`cuda_models.py`).

CUDA kernels of an operator go if Triton takes less than {WORTH} times as long at every size.
"""
