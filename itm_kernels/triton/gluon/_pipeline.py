"""The ring buffer in shared memory that feeds the tensor cores, its producer and its consumers.

Each program computes tiles of 128 x 256 scores one after another. A producer warp copies operands
with TMA into a ring of stages. Two consumer warpgroups multiply them with WGMMA; each computes 64
of the tile's rows. The warpgroups only share operands: while one reduces its scores, the other
multiplies, and the producer fills the ring with operands of the next tile.

Every stage has two barriers. `full` completes when the copied bytes have arrived, `empty` when both
warpgroups have multiplied them. Round r of the ring completes phase r of a barrier, and a wait for
a parity returns once the phase of that parity has completed. A consumer waits for its own round;
the producer waits for the previous round, which counts as completed on a new barrier.

Without synchronization both warpgroups would multiply at the same time and reduce at the same time.
The lower one therefore starts every tile some steps after the upper one, and they reduce one after
the other. Tiles with fewer steps than the ring has stages are not staggered: the upper warpgroup
could be two tiles ahead, which a parity cannot distinguish.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

HALF = gl.constexpr(64)  # rows per warpgroup
ROWS = gl.constexpr(128)
COLUMNS = gl.constexpr(256)
DEPTH = gl.constexpr(64)  # 128 bytes, the row of the widest swizzle
STAGES = gl.constexpr(4)  # 48 KB each
LEAD = gl.constexpr(2)  # steps that the upper warpgroup is ahead of the lower one
WARPS = gl.constexpr(4)  # per warpgroup
GROUP = gl.constexpr(8)  # tile rows that are visited together, so that operands stay in the L2
# A warpgroup's scores: 16 rows per warp, two rows per thread.
SCORES = gl.constexpr(
    gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 256, 16])
)
# Registers per thread: 384 threads start with 168 each and redistribute them.
START_REGISTERS = 168
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)

# Parts of an fp32 operand by product, low to high, two bits each, in the order of `score_tile`.
_X_OF_TWO = gl.constexpr(0b00_00_01)
_Y_OF_TWO = gl.constexpr(0b00_01_00)
_X_OF_THREE = gl.constexpr(0b00_00_01_00_01_10)
_Y_OF_THREE = gl.constexpr(0b00_01_00_10_01_00)


@gluon.constexpr_function
def products_per_score(parts):
    """Return the number of products of parts per score."""
    return (1, 3, 6)[parts - 1]


@gluon.constexpr_function
def without_dims(layout, *dims):
    """Return a layout without some dimensions, which are given in descending order."""
    for dim in dims:
        layout = gl.SliceLayout(dim, layout)
    return layout


@gluon.jit
def tile_counts(N, M):
    """Return the number of tiles of rows and of columns."""
    return gl.cdiv(N, ROWS), gl.cdiv(M, COLUMNS)


@gluon.jit
def program_tile(tile, row_tiles, column_tiles):
    """Return the row and column of a tile: column by column within a group of tile rows."""
    in_group = GROUP * column_tiles
    first = tile // in_group * GROUP
    height = gl.minimum(row_tiles - first, GROUP)
    within = tile % in_group
    return first + within % height, within // height


@gluon.jit
def ring_of(x, y):
    """Allocate the ring and its barriers."""
    x_ring = gl.allocate_shared_memory(x.dtype, [2 * STAGES, HALF, DEPTH], x.layout)
    y_ring = gl.allocate_shared_memory(y.dtype, [STAGES, COLUMNS, DEPTH], y.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    lead = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=2)
    mbarrier.init(lead.index(0), count=1)
    return x_ring, y_ring, full, empty, lead


@gluon.jit
def produce(
    x,  # descriptor of [PARTS * N, D], in boxes of [HALF, DEPTH]
    y,  # descriptor of [PARTS * M, D], in boxes of [COLUMNS, DEPTH]
    ring,
    N,
    M,
    chunks,  # of D
    PARTS: gl.constexpr,
):
    """Copy the operands of all tiles of a program into the ring. TMA writes zeros beyond D."""
    x_ring, y_ring, full, empty, _ = ring
    X_TAKES: gl.constexpr = _X_OF_THREE if PARTS == 3 else _X_OF_TWO
    Y_TAKES: gl.constexpr = _Y_OF_THREE if PARTS == 3 else _Y_OF_TWO
    row_tiles, column_tiles = tile_counts(N, M)
    step = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row_tile, column_tile = program_tile(tile, row_tiles, column_tiles)
        for chunk in range(chunks * products_per_score(PARTS)):
            row = row_tile * ROWS
            column = column_tile * COLUMNS
            depth = chunk * DEPTH
            if PARTS > 1:
                product = chunk // chunks
                depth -= product * chunks * DEPTH
                row += ((X_TAKES >> (2 * product)) & 3) * N
                column += ((Y_TAKES >> (2 * product)) & 3) * M
            slot = step % STAGES
            mbarrier.wait(empty.index(slot), ((step // STAGES) & 1) ^ 1)
            bar = full.index(slot)
            mbarrier.expect(bar, 2 * x.block_type.nbytes + y.block_type.nbytes)
            upper = x_ring.index(2 * slot)
            lower = x_ring.index(2 * slot + 1)
            tma.async_copy_global_to_shared(x, [row, depth], bar, upper)
            tma.async_copy_global_to_shared(x, [row + HALF, depth], bar, lower)
            tma.async_copy_global_to_shared(y, [column, depth], bar, y_ring.index(slot))
            step += 1


@gluon.jit
def multiply(ring, step, steps, half: gl.constexpr):
    """Return the scores `[HALF, COLUMNS]` of a warpgroup's next tile, and the step after it.

    A single loop without branches: otherwise ptxas serializes the products (note C7515).
    """
    x_ring, y_ring, full, empty, lead = ring
    staggered = steps >= STAGES
    if half == 1:
        mbarrier.wait(lead.index(0), (step // steps) & 1, pred=staggered)
    scores = gl.zeros((HALF, COLUMNS), gl.float32, SCORES)
    for k in range(steps):
        slot = step % STAGES
        mbarrier.wait(full.index(slot), (step // STAGES) & 1)
        rows = x_ring.index(2 * slot + half)
        columns = y_ring.index(slot).permute((1, 0))
        scores = warpgroup_mma(rows, columns, scores, is_async=True)
        # One product stays in flight. The previous product has completed, and its stage is free.
        scores = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=k > 0)
        if half == 0:
            mbarrier.arrive(lead.index(0), pred=staggered & (k == LEAD))
        step += 1
    scores = warpgroup_mma_wait(0, deps=(scores,))
    mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES))
    return scores, step
