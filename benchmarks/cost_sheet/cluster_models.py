"""Cost models of the kernels over clusters, which are assumed to be of equal size."""

import math

from torch import Tensor

from benchmarks.cost_sheet.counts import Count, Launch, unique_bytes
from benchmarks.cost_sheet.kernels import beside, kind_of, model, passes, rounding, scores, waves
from benchmarks.cost_sheet.rates import ceiling_of


def summed(launch: Launch, rows: float, M: int, D: int) -> Count:
    """Count products of fp32 weights, or of a mask, with parts of rows."""
    terms = max(1, launch.TERMS)
    parts = launch.PARTS
    products = sum(max(1, terms - part) for part in range(parts)) if launch.TERMS else parts
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


@model("_member_sums._sums_kernel")
def _member_sums(launch: Launch) -> Count:
    rows = launch.R * (launch.K if launch.PER_ANCHOR else 1)
    return summed(launch, rows, launch.M, launch.D)


@model("_synthesis_kernels.members_gradient_kernel")
def _members_gradient(launch: Launch) -> Count:
    return summed(launch, launch.P, launch.M, launch.D)


def _in_parts(launch: Launch, M: int) -> Count:
    """Count products of parts of weights [R, M] with parts of rows."""
    rows, kind = launch.rows, kind_of(launch.rows, "ieee")
    columns = math.ceil(launch.D / launch.COLUMNS)
    size = rows.dtype.itemsize * launch.PRODUCTS * float(launch.R) * M
    return Count(
        launch.kernel,
        triton=True,
        kind=kind,
        flop=2.0 * launch.R * M * launch.D * launch.PRODUCTS,
        depth=M * launch.PRODUCTS,
        ceiling=ceiling_of(kind, launch.ROWS, launch.COLUMNS, launch.num_warps),
        hbm=unique_bytes(launch.operands),
        l2=size * columns + size / launch.ROWS * launch.D,
    )


@model("_cluster_products.cluster_sums_kernel")
def _cluster_sums(launch: Launch) -> Count:
    return _in_parts(launch, launch.rows.shape[1])


@model("_cluster_products.cluster_gradient_kernel")
def _cluster_gradient(launch: Launch) -> Count:
    return _in_parts(launch, launch.out.shape[0])


@model("_weight_parts._parts_kernel")
def _weight_parts(launch: Launch) -> Count:
    return passes(launch, 8 + 4 * launch.TERMS)


@model("_gradient_products._parts_kernel")
def _gradient_parts(launch: Launch) -> Count:
    return passes(launch, 16)


@model("_synthesis_kernels.weights_gradient_kernel")
def _weights_gradient(launch: Launch) -> Count:
    return scores(launch, launch.P, launch.M, 6)


@model("_synthesis_kernels.softmax_kernel")
def _softmax(launch: Launch) -> Count:
    return passes(launch, 30, 2)._replace(hbm=2.0 * unique_bytes(launch.operands))


@model("_synthesis_kernels.softmax_gradient_kernel")
def _softmax_gradient(launch: Launch) -> Count:
    return passes(launch, 15)._replace(hbm=1.7 * unique_bytes(launch.operands))


# -- k-means ---------------------------------------------------------------------------------------


@model("kmeans._nearest_kernel")
def _nearest(launch: Launch) -> Count:
    x, y = launch.x, launch.y
    products = {(1, 1): 1, (1, 2): 2, (2, 2): 3}[launch.X_PARTS, launch.PARTS]
    # A program computes the scores of its rows with all centroids of its problems.
    tiles = launch.programs * math.ceil(launch.K / launch.WIDTH)
    elements, D = tiles * launch.ROWS * launch.COLUMNS, x.shape[-1]
    kind = kind_of(x, launch.PRECISION)
    others = {name: each for name, each in launch.operands.items() if name not in ("x", "y")}
    return Count(
        launch.kernel,
        triton=True,
        kind=kind,
        flop=2.0 * elements * D * products,
        depth=D * products,
        ceiling=waves(launch.programs)
        * ceiling_of(kind, launch.ROWS, launch.COLUMNS, launch.num_warps),
        instructions=12.0 * elements,
        exposed=1 / beside(launch, 0),
        hbm=x.bytes + y.bytes + unique_bytes(others),
        l2=tiles * (launch.ROWS + launch.COLUMNS) * D * x.dtype.itemsize * products,
    )


@model("_centroids.sums_kernel")
def _centroid_sums(launch: Launch) -> Count:
    x, terms = launch.x, max(1, launch.TERMS)
    groups, tiles = math.ceil(launch.R / launch.ROWS), math.ceil(launch.D / launch.COLUMNS)
    kind = "half" if launch.TERMS else kind_of(x, launch.PRECISION)
    read = float(launch.N) * groups * tiles * launch.COLUMNS
    marks = float(launch.N) * groups * launch.ROWS * tiles
    written = launch.sums.bytes + launch.squares.bytes
    return Count(
        launch.kernel,
        triton=True,
        kind=kind,
        flop=2.0 * marks * launch.COLUMNS * terms,
        depth=min(launch.N, launch.split_rows),
        ceiling=waves(launch.programs)
        * ceiling_of(kind, launch.ROWS, launch.COLUMNS, launch.num_warps),
        # The one-hot mask; a test for finite values, and the parts of a value.
        instructions=4.0 * marks + (5.0 + (3 * terms if launch.TERMS else 0)) * read,
        exposed=1 / beside(launch, 0),
        hbm=x.bytes + written,
        l2=read * x.dtype.itemsize + written + 4.0 * launch.N * launch.programs,
    )


@model("_gathered_sums.gathered_sums_kernel")
def _gathered_sums(launch: Launch) -> Count:
    x, tiles = launch.x, launch.grid[1]
    # A program passes over all assignments twice; its rows are then loaded in chunks, one after the
    # other [E].
    rows = math.ceil(launch.N / launch.R / launch.splits)
    chain = 2 * math.ceil(launch.N / launch.CHUNK) * 1e-6 + math.ceil(rows / launch.ROWS) * 1e-6
    read = float(launch.N) * x.shape[1]
    written = launch.sums.bytes + launch.squares.bytes + launch.y.bytes
    return Count(
        launch.kernel,
        triton=True,
        instructions=3.0 * read + 8.0 * launch.programs * launch.N,
        hbm=x.bytes + written,
        l2=read * x.dtype.itemsize + written + 8.0 * launch.N * launch.R * launch.splits * tiles,
        seconds=chain,
    )


# -- Cholesky factorization in fp64 ----------------------------------------------------------------

# A pivot of a block waits for its predecessor: a row reduction, a division and an update [E].
_PIVOT = 1.1e-6
_FP64_OF_A_PROCESSOR = 0.5 * 60e12 / 132  # tl.dot, as `rates`


def equal_starts(starts: Tensor, M: int) -> list[int]:
    """Return the starts of clusters of equal size, in place of those read from a GPU."""
    K = starts.shape[1] - 1
    return [k * M // K for k in range(K + 1)]


def _clusters(launch: Launch) -> tuple[int, int]:
    """Return the number of non-empty clusters of a launch, and the block rows of each.

    Both follow from the size of the factors, which is the worst case for all clusters together, or
    exact for equal clusters (`equal_starts`).
    """
    problems, size = (launch.factor if "factor" in launch.operands else launch.blocks).shape
    blocks = size // launch.BLOCK**2
    worst = _rows_of_blocks(blocks - launch.K)
    if worst:
        return problems * launch.K, math.ceil(worst / launch.K)
    for clusters in range(1, launch.K + 1):
        each = _rows_of_blocks(blocks // clusters)
        if blocks % clusters == 0 and each:
            return clusters, each
    raise ValueError(f"factors of {blocks} blocks do not belong to clusters of equal size")


def _rows_of_blocks(blocks: int) -> int:
    """Return the number of block rows of a triangle of blocks; 0 for any other number."""
    rows = (math.isqrt(8 * max(0, blocks) + 1) - 1) // 2
    return rows if rows * (rows + 1) // 2 == blocks else 0


def _panel(launch: Launch) -> tuple[int, int, int, int]:
    """Return the number of clusters, and the block rows of one: all, before the panel, in it."""
    clusters, blocks = _clusters(launch)
    width = math.ceil(blocks / launch.steps)
    before = launch.step * width
    return clusters, blocks, before, max(0, min(width, blocks - before))


def _solved(launch: Launch, flop: float, programs: float, moved: float = 0) -> Count:
    """Count fp64 products, sequential within a program."""
    chain = flop / max(1, programs) / _FP64_OF_A_PROCESSOR
    return Count(
        launch.kernel, True, kind="fp64", flop=flop, depth=launch.BLOCK, ceiling=0.5, hbm=moved,
        l2=2 * moved, seconds=chain,
    )  # fmt: skip


@model("_cholesky._panel_kernel")
def _panel_blocks(launch: Launch) -> Count:
    clusters, blocks, before, width = _panel(launch)
    tiles = clusters * sum(blocks - before - j for j in range(width))
    flop = 2.0 * tiles * launch.BLOCK**2 * (launch.D + before * launch.BLOCK)
    return _solved(launch, flop, tiles, 8.0 * tiles * launch.BLOCK**2)


def _lower(blocks: float, width: int, block: int) -> float:
    """Return the FLOP of block rows of a panel: products with earlier blocks, and a final one."""
    return 2.0 * block**3 * blocks * sum(j + 1 for j in range(width))


@model("_cholesky._diagonal_kernel")
def _diagonal(launch: Launch) -> Count:
    clusters, _, _, width = _panel(launch)
    flop = clusters * _lower(width, width, launch.BLOCK) / 2
    count = _solved(launch, flop, clusters, 8.0 * clusters * (width * launch.BLOCK) ** 2)
    return count._replace(seconds=count.seconds + width * launch.BLOCK * _PIVOT)


@model("_cholesky._below_kernel")
def _below(launch: Launch) -> Count:
    clusters, blocks, before, width = _panel(launch)
    rows = clusters * max(0, blocks - before - width)
    flop = _lower(rows, width, launch.BLOCK)
    return _solved(launch, flop, rows, 16.0 * rows * width * launch.BLOCK**2)


@model("_kam_solve._substitute_kernel")
def _substitute(launch: Launch) -> Count:
    (clusters, _), size = _clusters(launch), launch.M / launch.K
    flop = clusters * size**2 * launch.C  # half of the square, two FLOP per element
    share = clusters / (launch.K * launch.factor.shape[0])
    return _solved(launch, flop, share * launch.programs, 4.0 * clusters * size**2)


@model("_gram_gradient._blocks_kernel")
def _gram_blocks(launch: Launch) -> Count:
    clusters, each = _clusters(launch)
    tiles = clusters * each * (each + 1) / 2
    flop = 3 * 2.0 * tiles * launch.BLOCK**2 * launch.D  # x x^T, H W^T, W H^T
    size = unique_bytes({name: launch.operands[name] for name in ("x", "memory", "of_memory")})
    moved = size + 8.0 * tiles * launch.BLOCK**2
    rows = (4 + 4 + 8) * 2 * tiles * launch.BLOCK * launch.D
    return _solved(launch, flop, tiles, moved)._replace(l2=rows)


@model("_gram_gradient._members_kernel")
def _gram_members(launch: Launch) -> Count:
    clusters, each = _clusters(launch)
    columns = math.ceil(launch.D / launch.COLUMNS)
    flop = 2.0 * clusters * (each * launch.BLOCK) ** 2 * launch.D
    blocks = 8.0 * clusters * (each * launch.BLOCK) ** 2
    found = _solved(launch, flop, clusters * each * columns, blocks / 2)
    rows = 4.0 * clusters * each * columns * each * launch.BLOCK * launch.COLUMNS
    return found._replace(l2=blocks * columns + rows)


@model("_clusters._sort_kernel")
def _sort(launch: Launch) -> Count:
    # The program of every cluster passes over all members twice, in sequential chunks [E].
    chain = 2 * math.ceil(launch.M / launch.CHUNK) * 1e-6
    return Count(launch.kernel, True, l2=launch.programs * launch.M * 8.0, seconds=chain)


@model("_anchor_gradient._weights_kernel")
def _anchor_gradient(launch: Launch) -> Count:
    return passes(launch, 10 + rounding(launch))


@model(
    "_clusters._spans_kernel",
    "_synthesis_logits._cosine_kernel",
    "_anchor_gradient._gradient_kernel",
    "_centroids.mean_kernel",
)
def _pass(launch: Launch) -> Count:
    return passes(launch)
