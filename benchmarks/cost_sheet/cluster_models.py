"""Models of the kernels over clusters, which are of equal size."""

import math

from benchmarks.cost_sheet.counts import Count, Launch, unique_bytes
from benchmarks.cost_sheet.kernels import kind_of, model, passes, scores
from benchmarks.cost_sheet.rates import ceiling_of


def summed(launch: Launch, rows: float, M: int, D: int) -> Count:
    """Count products of weights in fp32, or a mask, with parts of rows."""
    terms = max(1, launch.TERMS)
    parts = launch.PARTS
    products = sum(max(1, terms - part) for part in range(parts)) if launch.TERMS else parts
    members = launch.arguments.get("OF") == "members"
    products = parts if members else products
    source, size = launch.rows, launch.rows.dtype.itemsize
    kind = kind_of(source, launch.PRECISION)
    columns = math.ceil(D / launch.COLUMNS)
    return Count(
        launch.kernel,
        triton=True,
        kind=kind,
        flop=2.0 * rows * M * D * products,
        depth=M,
        ceiling=ceiling_of(kind, launch.ROWS, launch.COLUMNS),
        instructions=rows * M * columns * 4.0 * terms,
        hbm=unique_bytes(launch.operands),
        l2=rows * M * 4.0 * columns * parts + rows / launch.ROWS * M * D * size * parts,
    )


@model("_sums._sums_kernel")
def _sums(launch: Launch) -> Count:
    rows = launch.R * (launch.K if launch.PER_ANCHOR else 1)
    return summed(launch, rows, launch.M, launch.D)


@model("_synthesis.members_gradient_kernel")
def _members_gradient(launch: Launch) -> Count:
    return summed(launch, launch.P, launch.M, launch.D)


@model("_synthesis.weights_gradient_kernel")
def _weights_gradient(launch: Launch) -> Count:
    return scores(launch, launch.P, launch.M, 6)


@model("_synthesis.softmax_kernel")
def _softmax(launch: Launch) -> Count:
    return passes(launch, 30, 2)._replace(hbm=2.0 * unique_bytes(launch.operands))


@model("_synthesis.softmax_gradient_kernel")
def _softmax_gradient(launch: Launch) -> Count:
    return passes(launch, 15)._replace(hbm=1.7 * unique_bytes(launch.operands))


def _clusters(launch: Launch) -> tuple[int, float]:
    """Return how many clusters there are, of equal size, and how many columns each has.

    Spans are `(columns + K (block - 1)) / block`, so that K follows from T.
    """
    blocks = launch.M / launch.BLOCK
    clusters = max(1, round((launch.T - blocks) * launch.BLOCK / (launch.BLOCK - 1)))
    return clusters, launch.M / clusters


@model("_systems._pivot_kernel")
def _pivot(launch: Launch) -> Count:
    clusters, size = _clusters(launch)
    problems = launch.matrix.shape[0]
    if launch.step * launch.BLOCK >= size:
        return Count(launch.kernel, True)
    flop = 2.0 * problems * clusters * size * launch.BLOCK**2
    # Every program sweeps the pivot: 64 steps that wait for each other, .4 us each [E].
    chain = 64 * 0.4e-6
    return Count(launch.kernel, True, kind="fp64", flop=flop, depth=64, ceiling=0.5, seconds=chain)


@model("_systems._update_kernel")
def _update(launch: Launch) -> Count:
    clusters, size = _clusters(launch)
    problems = launch.matrix.shape[0]
    if launch.step * launch.BLOCK >= size:
        return Count(launch.kernel, True)
    flop = 2.0 * problems * clusters * size**2 * launch.BLOCK
    moved = 16.0 * problems * clusters * size**2
    chain = size / launch.BLOCK * 4e-6  # a program goes along its row of blocks [E]
    return Count(
        launch.kernel, True, kind="fp64", flop=flop, depth=64, ceiling=0.5, hbm=moved, seconds=chain
    )


@model("_systems._multiply_kernel")
def _multiply(launch: Launch) -> Count:
    _, size = _clusters(launch)
    problems = launch.matrix.shape[0]
    flop = 2.0 * problems * launch.R * launch.M * size
    return Count(
        launch.kernel, True, kind="fp64", flop=flop, depth=int(size), ceiling=0.5,
        hbm=launch.weights.bytes + launch.out.bytes + 8.0 * problems * launch.M * size,
    )  # fmt: skip
