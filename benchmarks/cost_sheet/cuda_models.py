"""Cost models of the CUDA kernels of a small batch (csrc/cuda), which are bound by latency.

The time of a block is the largest of three: its dependent round trips to the L2, its reads from
shared memory, and the L2 bandwidth of its processor. Trips and clocks are counted in the source for
N rows of both sides and no ids [C], unless a line is marked as an estimate [E]. Rows are in the L2.
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
INSIDE = 0.1  # fraction of pairs inside a band [E]
JOIN = 60  # clocks of one of the five shuffle steps that merge the states of a warp [E]


class Batch(NamedTuple):
    """N rows of both sides, and the bytes of an input element."""

    N: int
    size: int = 4
    D: int = 1024

    @property
    def parts(self) -> tuple[int, int]:
        """Number of parts that D is split into, and the columns of a part (`plan_distances`)."""
        tiles = math.ceil(self.N / 32) ** 2
        parts = max(1, min(264 // tiles, math.ceil(self.D / 64)))
        depth = math.ceil(math.ceil(self.D / parts) / 16) * 16
        return math.ceil(self.D / depth), depth

    @property
    def blocks(self) -> int:
        """Blocks of the launch that computes the scores."""
        return math.ceil(self.N / 32) ** 2 * self.parts[0]

    @property
    def many(self) -> int:
        """Loads of a lane along a row, four elements at a time."""
        return math.ceil(self.N / 128)


def waiting(name: str, blocks: int, trips: float, clocks: float = 0, each: float = 0) -> Count:
    """Count a launch by the trips, the clocks and the bytes read of a block."""
    resident = math.ceil(blocks / PROCESSORS)
    reads = resident * each / L2_OF_A_PROCESSOR
    more = max(0.0, trips - TRIPS)  # beyond those of every launch
    seconds = more * L2_TRIP + max(clocks, reads) / CLOCK
    return Count(name, True, seconds=seconds, l2=float(blocks * each), programs=blocks)


def distances(batch: Batch, instructions: int = 1, wide: int = 4) -> Count:
    """Count tiles of 32 x 32 pairs with 64 threads, 4 x 4 pairs each.

    8 reads of two elements serve 16 pairs twice. A single warp on a scheduler waits for its reads;
    several warps share the bandwidth of shared memory.
    """
    resident = math.ceil(batch.blocks / PROCESSORS)
    reads = 2 * 8 * 32 * 2 * wide / SHARED_BYTES  # per block, for two columns
    of_warp = SHARED_CLOCKS + 32 * instructions * wide / 4 + 10
    depth = batch.parts[1]
    clocks = depth / 2 * max(resident * reads, of_warp) + depth / 16 * 40  # barriers
    each = 64.0 * depth * batch.size
    return waiting("distance_kernel", batch.blocks, 2, clocks, each)


def add_parts(batch: Batch, wide: int = 4) -> Count:
    """Count one thread per entry; the loads of all parts are in flight together."""
    blocks, each = math.ceil(batch.N**2 / 256), 256.0 * wide * batch.parts[0]
    return waiting("add_parts_kernel", blocks, 1 + math.ceil(batch.parts[0] / 16), 50, each)


def score_reduction(
    name: str, batch: Batch, join: float = JOIN, parts: int | None = None, more: float = 1
) -> Count:
    """Count blocks of eight rows and eight columns that reduce scores given in parts."""
    parts = batch.parts[0] if parts is None else parts
    trips = batch.many * (1 if parts <= 4 else math.ceil(parts / 8))
    clocks = 2 * batch.many * 4 * join / 2 + 10 * join + 100
    each = 2.0 * 8 * batch.N * 4 * parts
    return waiting(name, math.ceil(batch.N / 8), 2 * trips + 1 + more, clocks, each)


def gather(batch: Batch, entries: int) -> Count:
    """Count blocks that read the gradients of 256 pairs per iteration, prefetched, then their rows.

    A row is in four pairs: twice its own, and two others, rarely two of them in one warp [E].
    """
    blocks = 2 * batch.N * math.ceil(batch.D / 256)
    resident = math.ceil(blocks / PROCESSORS / 3)
    trips = resident * (3 + math.ceil(entries / 256))
    return waiting("gather_kernel", blocks, trips, 150 * resident, 4 * 256.0 * batch.size)


def unit_rows(name: str, batch: Batch) -> Count:
    """Count one block per row."""
    resident = math.ceil(batch.N / PROCESSORS / 4)
    each = batch.D * (batch.size + 4.0)
    return waiting(name, batch.N, 3 * resident, 250 * resident, each)


def score_gradient(batch: Batch) -> Count:
    """Count one warp per row of stored scores."""
    clocks = batch.many * 4 * 100 + 5 * JOIN
    return waiting(
        "score_gradient_kernel", math.ceil(batch.N / 8), 2 + batch.many, clocks, 64.0 * batch.N
    )


def hinge_gradient(batch: Batch) -> Count:
    """Count one warp per row and column of stored scores, and the hinges of the row's pair."""
    trips = 4 + 2 * batch.many + 2 * batch.many + math.ceil(batch.N / 128)
    clocks = 15 * JOIN + batch.many * 400
    return waiting("hinge_gradient_kernel", math.ceil(batch.N / 8), trips, clocks, 96.0 * batch.N)


def row_gradient(batch: Batch, scalars: bool) -> Count:
    """Count tiles of 16 x 64 with 64 threads, 4 x 4 elements each.

    Two reads of four elements serve 16 products.
    """
    blocks = 2 * math.ceil(batch.N / 16) * math.ceil(batch.D / 64) + scalars
    resident = math.ceil(blocks / PROCESSORS)
    reads = 2 * 2 * 32 * 16 / SHARED_BYTES  # per block, for one row
    of_warp = SHARED_CLOCKS / 4 + 16  # four rows are in flight
    clocks = batch.N * max(resident * reads, of_warp) + batch.N / 32 * 60
    each = batch.N * (64.0 * batch.size + 16 * 4)
    return waiting("row_gradient_kernel", blocks, 3, clocks, each)


def stored_band(batch: Batch, parts: int) -> Count:
    """Count one warp per row."""
    trips = batch.many * (1 if parts <= 4 else math.ceil(parts / 8))
    blocks = math.ceil(batch.N / 8)
    return waiting(
        "stored_band_kernel", blocks, trips + 1, 5 * JOIN + 200, 8.0 * batch.N * 4 * parts
    )


def stored_gradient(batch: Batch) -> Count:
    """Count `row_gradient` of one side, with weights as bits; few chunks can be skipped."""
    found = row_gradient(batch, False)
    return found._replace(seconds=found.seconds / 2, programs=found.programs // 2)


def finite_rows(batch: Batch) -> Count:
    """Count one warp per row, 32 elements per load, with several loads in flight [E]."""
    return waiting("finite_rows_kernel", math.ceil(batch.N / 8), batch.D / 32 / 4 + 1, 100)


def band(batch: Batch) -> Count:
    """Count tiles of 32 x 32 on and above the diagonal over all of D: two additions per pair."""
    tiles = math.ceil(batch.N / 32)
    blocks = tiles * (tiles + 1) // 2
    resident = math.ceil(blocks / PROCESSORS)
    of_two = max(resident * 32, resident * 32, SHARED_CLOCKS + 64 + 10)
    clocks = batch.D / 2 * of_two + batch.D / 16 * 60 + 1000
    return waiting("band_kernel", blocks, 4, clocks, 64.0 * batch.D * batch.size)


def add_panel(batch: Batch) -> Count:
    """Count one thread per row over all parts, with four in flight [E]."""
    tiles = math.ceil(batch.N / 32)
    return waiting("add_panel_kernel", math.ceil(batch.N / 256), 2 + tiles / 4, 60)


def distance_gradient(batch: Batch) -> Count:
    """Count tiles of 16 x 64 with 64 threads, in chunks of 16 rows.

    A pair takes two comparisons and two additions.
    """
    blocks = math.ceil(batch.N / 16) * math.ceil(batch.D / 64)
    resident = math.ceil(blocks / PROCESSORS)
    some = 1 - (1 - INSIDE) ** (16 * 16)  # fraction of chunks with a pair inside the band
    instructions = 16 * 4 * 2 / 4  # two warps of a block on four schedulers, for one row of y
    clocks = batch.N * some * max(resident * instructions, SHARED_CLOCKS / 4 + 64) + batch.N * 4
    return waiting("distance_gradient_kernel", blocks, 3, clocks, batch.N * 64.0 * batch.size)


def kmeans(batch: Batch) -> Count:
    """Count one block; the products that it rereads are in the L1 if they fit."""
    groups = math.ceil(batch.N / 32)
    first = batch.N / 32 * 8  # trips of the products with the initial centroids
    fits = batch.N**2 * 4 <= 128 << 10
    members = math.ceil(batch.N / CLUSTERS / 4)
    means = CLUSTERS * batch.D / 4 / 512 * members * 2
    near = 2 * groups + CLUSTERS * math.ceil(batch.N / 512) + 20  # dependent loads from the L1
    sums = math.ceil(CLUSTERS * groups / 16) * members
    trips = first + means + (0 if fits else ITERATIONS * sums)
    steps = ITERATIONS * (near + sums * (2 if fits else 1))
    each = batch.N * batch.D * batch.size * 2.0 + (0 if fits else ITERATIONS * batch.N**2 * 4.0)
    return waiting("kmeans_kernel", 1, trips, steps * 40, each)


def kmeans_plus_plus(batch: Batch) -> Count:
    """Count one block; a centroid takes a row of distances, ten merges, a barrier and a copy."""
    parts = batch.parts[0]
    of_one = 2 + math.ceil(4 * parts / 32)
    return waiting("kmeans_plus_plus_kernel", 1, CLUSTERS * of_one, CLUSTERS * (8 * JOIN + 150))


def cluster_members(batch: Batch) -> Count:
    """Count one warp per cluster, with two passes over the members, 32 per load."""
    return waiting("cluster_members_kernel", 1, 2 * batch.N / 32 / 4 + 1, 2 * batch.N / 32 * 30)


def kam_solve(batch: Batch) -> Count:
    """Count one block per cluster of equal size: 16 x 16 threads, two barriers per column, fp64."""
    size = batch.N / CLUSTERS
    entries = math.ceil(size / 16) ** 2
    near = SHARED_CLOCKS * 3 + 100 + entries * 24
    return waiting("kam_solve_kernel", CLUSTERS, 4 if size <= 64 else 4 * size, size * near)


def _of_anchor(batch: Batch, kam: bool) -> float:
    """Return the trips of an anchor's weights: scores, a softmax, rows of an inverse."""
    return batch.N / 64 * 8 + 6 + (batch.N / 16 + 2 if kam else 0)


def _vectors(batch: Batch) -> float:
    """Return the trips of the sums of members: four in flight, four columns per load."""
    return CLUSTERS * batch.D / 4 / 512 * math.ceil(batch.N / CLUSTERS / 4) * 2


def synthesis(batch: Batch, kam: bool, logits: bool) -> Count:
    """Count one block per anchor and processor; members are read twice."""
    rounds = math.ceil(batch.N / PROCESSORS)
    trips = _of_anchor(batch, kam) + _vectors(batch) + 2
    rows = 2.0 * batch.N * batch.D * batch.size
    written = 0 if logits else CLUSTERS * batch.D * 4.0
    each = rows + written + (batch.N * batch.N / CLUSTERS * 8.0 if kam else 0)
    return waiting("synthesis_kernel", batch.N, rounds * trips, rounds * 2000, each)


def anchor_gradient(batch: Batch, kam: bool, logits: bool, detach: bool) -> Count:
    """Count one block per anchor: the forward pass again, and two more reads of the members.

    Constant weights need one.
    """
    rounds = math.ceil(batch.N / PROCESSORS)
    trips = _of_anchor(batch, kam) + (_vectors(batch) if logits else 0) + batch.N / 8 + 4
    trips += 0 if detach else batch.N / 64 * 8 + (batch.N / 16 if kam else 0)
    times = 2 + logits + (not detach)
    each = float(times) * batch.N * batch.D * batch.size + 2 * CLUSTERS * batch.D * 4.0
    return waiting("anchor_gradient_kernel", batch.N, rounds * trips, rounds * 3000, each)


def member_gradient(batch: Batch, kam: bool) -> Count:
    """Count one block per member: a gradient and a row of every anchor, with four in flight."""
    rounds = math.ceil(batch.N / PROCESSORS / 2)
    trips = batch.N / 4 * 2 + 4 + (batch.N * math.ceil(batch.N / 256) / 2 if kam else 0)
    each = batch.N * batch.D * (4.0 + batch.size)
    return waiting("member_gradient_kernel", batch.N, rounds * trips, 500, each)
