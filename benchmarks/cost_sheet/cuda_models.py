"""Models of the CUDA kernels of a small batch, from csrc/cuda: all of them wait more than they do.

A block's time is that of the longest: its dependent round trips to the L2, what its warps read from
shared memory, and what its processor gets from the L2. Trips and clocks are counted in the source
at N rows of both sides and no ids [C], unless a line says [E]. Rows are in the L2.
"""

import math
from typing import NamedTuple

from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.rates import (
    CLOCK,
    L2_OF_A_PROCESSOR,
    L2_TRIP,
    PROCESSORS,
    SHARED_BYTES,
    SHARED_CLOCKS,
    TRIPS,
)

CLUSTERS, ITERATIONS = 8, 10
INSIDE = 0.1  # share of pairs inside a band [E]
JOIN = 60  # clocks in which two lanes exchange a state and join it, which five do in turn [E]


class Batch(NamedTuple):
    """N rows of both sides, and the bytes of a number as it came."""

    N: int
    size: int = 4
    D: int = 1024

    @property
    def parts(self) -> tuple[int, int]:
        """How many parts D is shared out into, and the columns of one (`plan_distances`)."""
        tiles = math.ceil(self.N / 32) ** 2
        parts = max(1, min(264 // tiles, math.ceil(self.D / 64)))
        depth = math.ceil(math.ceil(self.D / parts) / 16) * 16
        return math.ceil(self.D / depth), depth

    @property
    def blocks(self) -> int:
        """Blocks of the launch that makes the scores."""
        return math.ceil(self.N / 32) ** 2 * self.parts[0]

    @property
    def many(self) -> int:
        """Loads of a lane that goes along a row, four numbers at a time."""
        return math.ceil(self.N / 128)


def waiting(name: str, blocks: int, trips: float, clocks: float = 0, each: float = 0) -> Count:
    """Count a launch by what a block waits for and computes, and the bytes that it reads."""
    resident = math.ceil(blocks / PROCESSORS)
    reads = resident * each / L2_OF_A_PROCESSOR
    more = max(0.0, trips - TRIPS)  # than every launch has
    seconds = more * L2_TRIP + max(clocks, reads) / CLOCK
    return Count(name, True, seconds=seconds, l2=float(blocks * each), programs=blocks)


def distances(batch: Batch, instructions: int = 1, wide: int = 4) -> Count:
    """32 x 32 pairs by 64 threads, 4 x 4 each: 8 reads of two numbers feed 16 pairs twice.

    A warp alone on its scheduler waits for its reads; several share what shared memory gives.
    """
    resident = math.ceil(batch.blocks / PROCESSORS)
    reads = 2 * 8 * 32 * 2 * wide / SHARED_BYTES  # of a block, for two columns
    of_warp = SHARED_CLOCKS + 32 * instructions * wide / 4 + 10
    depth = batch.parts[1]
    clocks = depth / 2 * max(resident * reads, of_warp) + depth / 16 * 40  # barriers
    each = 64.0 * depth * batch.size
    return waiting("distance_kernel", batch.blocks, 2, clocks, each)


def add_parts(batch: Batch, wide: int = 4) -> Count:
    """A thread an entry, all parts on their way at once."""
    blocks, each = math.ceil(batch.N**2 / 256), 256.0 * wide * batch.parts[0]
    return waiting("add_parts_kernel", blocks, 1 + math.ceil(batch.parts[0] / 16), 50, each)


def fold(
    name: str, batch: Batch, join: float = JOIN, parts: int | None = None, more: float = 1
) -> Count:
    """Eight rows and eight columns a block, and as many trips as several parts of scores take."""
    parts = batch.parts[0] if parts is None else parts
    trips = batch.many * (1 if parts <= 4 else math.ceil(parts / 8))
    clocks = 2 * batch.many * 4 * join / 2 + 10 * join + 100
    each = 2.0 * 8 * batch.N * 4 * parts
    return waiting(name, math.ceil(batch.N / 8), 2 * trips + 1 + more, clocks, each)


def gather(batch: Batch, entries: int) -> Count:
    """A block reads 256 of the pairs' gradients at once, the next on their way, then named rows.

    A row is named by its own pair twice, and by two others: hardly a warp has two of them [E].
    """
    blocks = 2 * batch.N * math.ceil(batch.D / 256)
    resident = math.ceil(blocks / PROCESSORS / 3)
    trips = resident * (3 + math.ceil(entries / 256))
    return waiting("gather_kernel", blocks, trips, 150 * resident, 4 * 256.0 * batch.size)


def unit(name: str, batch: Batch) -> Count:
    """A block a row."""
    resident = math.ceil(batch.N / PROCESSORS / 4)
    each = batch.D * (batch.size + 4.0)
    return waiting(name, batch.N, 3 * resident, 250 * resident, each)


def weigh(batch: Batch) -> Count:
    """A warp a row of scores that were kept."""
    clocks = batch.many * 4 * 100 + 5 * JOIN
    return waiting(
        "score_gradient_kernel", math.ceil(batch.N / 8), 2 + batch.many, clocks, 64.0 * batch.N
    )


def weigh_hinges(batch: Batch) -> Count:
    """A row and a column of scores that were kept, and the hinges of the row's own pair."""
    trips = 4 + 2 * batch.many + 2 * batch.many + math.ceil(batch.N / 128)
    clocks = 15 * JOIN + batch.many * 400
    return waiting("hinge_gradient_kernel", math.ceil(batch.N / 8), trips, clocks, 96.0 * batch.N)


def weighted(batch: Batch, scalars: bool) -> Count:
    """16 x 64 numbers by 64 threads, 4 x 4 each: two reads of four numbers feed 16 products."""
    blocks = 2 * math.ceil(batch.N / 16) * math.ceil(batch.D / 64) + scalars
    resident = math.ceil(blocks / PROCESSORS)
    reads = 2 * 2 * 32 * 16 / SHARED_BYTES  # of a block, for one row
    of_warp = SHARED_CLOCKS / 4 + 16  # four rows are on their way
    clocks = batch.N * max(resident * reads, of_warp) + batch.N / 32 * 60
    each = batch.N * (64.0 * batch.size + 16 * 4)
    return waiting("row_gradient_kernel", blocks, 3, clocks, each)


def stored_band(batch: Batch, parts: int) -> Count:
    """A warp a row."""
    trips = batch.many * (1 if parts <= 4 else math.ceil(parts / 8))
    blocks = math.ceil(batch.N / 8)
    return waiting(
        "stored_band_kernel", blocks, trips + 1, 5 * JOIN + 200, 8.0 * batch.N * 4 * parts
    )


def stored_pull(batch: Batch) -> Count:
    """The products of one side's weights, which are bits, as `weighted`; few chunks have none."""
    found = weighted(batch, False)
    return found._replace(seconds=found.seconds / 2, programs=found.programs // 2)


def finite(batch: Batch) -> Count:
    """A warp a row, 32 numbers at once, several on their way [E]."""
    return waiting("finite_rows_kernel", math.ceil(batch.N / 8), batch.D / 32 / 4 + 1, 100)


def band(batch: Batch) -> Count:
    """Tiles of 32 x 32 on and above the diagonal, by all of D: two additions a pair."""
    tiles = math.ceil(batch.N / 32)
    blocks = tiles * (tiles + 1) // 2
    resident = math.ceil(blocks / PROCESSORS)
    of_two = max(resident * 32, resident * 32, SHARED_CLOCKS + 64 + 10)
    clocks = batch.D / 2 * of_two + batch.D / 16 * 60 + 1000
    return waiting("band_kernel", blocks, 4, clocks, 64.0 * batch.D * batch.size)


def add_panel(batch: Batch) -> Count:
    """A thread a row, one part after another, four on their way [E]."""
    tiles = math.ceil(batch.N / 32)
    return waiting("add_panel_kernel", math.ceil(batch.N / 256), 2 + tiles / 4, 60)


def pull(batch: Batch) -> Count:
    """16 x 64 by 64 threads; chunks of 16 rows, two comparisons and two additions a pair."""
    blocks = math.ceil(batch.N / 16) * math.ceil(batch.D / 64)
    resident = math.ceil(blocks / PROCESSORS)
    some = 1 - (1 - INSIDE) ** (16 * 16)  # of the chunks
    instructions = 16 * 4 * 2 / 4  # of a block's two warps on four schedulers, for one row of y
    clocks = batch.N * some * max(resident * instructions, SHARED_CLOCKS / 4 + 64) + batch.N * 4
    return waiting("distance_gradient_kernel", blocks, 3, clocks, batch.N * 64.0 * batch.size)


def kmeans(batch: Batch) -> Count:
    """One block. What it reads again and again lies in the L1, while it fits: the products."""
    groups = math.ceil(batch.N / 32)
    first = batch.N / 32 * 8  # trips of the products with the first centroids
    fits = batch.N**2 * 4 <= 128 << 10
    members = math.ceil(batch.N / CLUSTERS / 4)
    means = CLUSTERS * batch.D / 4 / 512 * members * 2
    near = 2 * groups + CLUSTERS * math.ceil(batch.N / 512) + 20  # loads from the L1 in turn
    sums = math.ceil(CLUSTERS * groups / 16) * members
    trips = first + means + (0 if fits else ITERATIONS * sums)
    steps = ITERATIONS * (near + sums * (2 if fits else 1))
    each = batch.N * batch.D * batch.size * 2.0 + (0 if fits else ITERATIONS * batch.N**2 * 4.0)
    return waiting("kmeans_kernel", 1, trips, steps * 40, each)


def kmeans_plus_plus(batch: Batch) -> Count:
    """One block: a centroid is a row of squares in parts, ten joins, a barrier, a row copied."""
    parts = batch.parts[0]
    of_one = 2 + math.ceil(4 * parts / 32)
    return waiting("kmeans_plus_plus_kernel", 1, CLUSTERS * of_one, CLUSTERS * (8 * JOIN + 150))


def lists(batch: Batch) -> Count:
    """A warp a cluster, 32 members at once, all of them twice."""
    return waiting("cluster_members_kernel", 1, 2 * batch.N / 32 / 4 + 1, 2 * batch.N / 32 * 30)


def systems(batch: Batch) -> Count:
    """A block a cluster of equal size: two barriers a column, 16 x 16 entries at once in fp64."""
    size = batch.N / CLUSTERS
    entries = math.ceil(size / 16) ** 2
    near = SHARED_CLOCKS * 3 + 100 + entries * 24
    return waiting("kam_solve_kernel", CLUSTERS, 4 if size <= 64 else 4 * size, size * near)


def _of_anchor(batch: Batch, kam: bool) -> float:
    """Trips of a block that weighs its members: scores, a softmax, rows of an inverse."""
    return batch.N / 64 * 8 + 6 + (batch.N / 16 + 2 if kam else 0)


def _vectors(batch: Batch) -> float:
    """Trips of sums of members, four on their way, of columns in fours."""
    return CLUSTERS * batch.D / 4 / 512 * math.ceil(batch.N / CLUSTERS / 4) * 2


def synthesis(batch: Batch, kam: bool, logits: bool) -> Count:
    """A block an anchor, alone on its processor; members pass by twice."""
    rounds = math.ceil(batch.N / PROCESSORS)
    trips = _of_anchor(batch, kam) + _vectors(batch) + 2
    rows = 2.0 * batch.N * batch.D * batch.size
    written = 0 if logits else CLUSTERS * batch.D * 4.0
    each = rows + written + (batch.N * batch.N / CLUSTERS * 8.0 if kam else 0)
    return waiting("synthesis_kernel", batch.N, rounds * trips, rounds * 2000, each)


def anchor_gradient(batch: Batch, kam: bool, logits: bool, detach: bool) -> Count:
    """A block an anchor: all of it again, and members twice more; once if weights are constants."""
    rounds = math.ceil(batch.N / PROCESSORS)
    trips = _of_anchor(batch, kam) + (_vectors(batch) if logits else 0) + batch.N / 8 + 4
    trips += 0 if detach else batch.N / 64 * 8 + (batch.N / 16 if kam else 0)
    times = 2 + logits + (not detach)
    each = float(times) * batch.N * batch.D * batch.size + 2 * CLUSTERS * batch.D * 4.0
    return waiting("anchor_gradient_kernel", batch.N, rounds * trips, rounds * 3000, each)


def member_gradient(batch: Batch, kam: bool) -> Count:
    """A block a member: a vector's gradient and a row of every anchor, four on their way."""
    rounds = math.ceil(batch.N / PROCESSORS / 2)
    trips = batch.N / 4 * 2 + 4 + (batch.N * math.ceil(batch.N / 256) / 2 if kam else 0)
    each = batch.N * batch.D * (4.0 + batch.size)
    return waiting("member_gradient_kernel", batch.N, rounds * trips, 500, each)
