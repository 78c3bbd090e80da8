"""The tile of every kernel, from one table.

Nothing is tuned at run time, so that results depend only on the inputs and the architecture.
"""

import functools
from typing import Any, NamedTuple

import triton

from itm_kernels.triton._launch import cdiv

INTERPRETED: bool = triton.knobs.runtime.interpret


def architecture() -> int | str:
    """Return the current device's architecture: 80, 90, "gfx942"; 0 when interpreted."""
    if INTERPRETED:
        return 0
    active = triton.runtime.driver.active
    return _architecture(active, active.get_current_device())


@functools.cache  # the properties of a device take microseconds
def _architecture(active: Any, device: Any) -> int | str:
    found: int | str = active.get_current_target().arch
    return found


# Architectures with their own tiles or operands. SMALL: 99 KB of shared memory, mma.sync.
SMALL = (86, 89, 120, 121)
HOPPER = (90,)


class Tile(NamedTuple):
    """Rows, columns and elements of D per step of a program, and its warps and stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int = 0  # most registers of a thread; 0: as many as the compiler takes

    def programs(self, N: int, M: int) -> tuple[int]:
        """Return the grid of a kernel that uses `_score_tiles.program_tile`."""
        return (cdiv(N, self.rows) * cdiv(M, self.columns),)

    def options(self) -> dict[str, Any]:
        """Return the tile as a kernel's arguments."""
        sizes = {"ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth}
        return {**sizes, **self.launch_options()}

    def launch_options(self) -> dict[str, int]:
        """Return the warps, stages and registers of a launch."""
        found = {"num_warps": self.warps, "num_stages": self.stages}
        return {**found, "maxnreg": self.registers} if self.registers else found


class TableRow(NamedTuple):
    """A row of the table, which applies from a number of rows on."""

    architectures: tuple[int | str, ...]  # (): any
    # The kind of operands: "half" (also for parts), "tf32", "ieee", "fp64"; for kernels without
    # scores "difference", "weighted_difference", "sum".
    kind: str
    # How a kernel uses the scores: "reduction" (of rows and columns, in registers), "weights"
    # (exponentials and a stored weight), "narrow" (more values per score), "masks" (also masks of
    # ids), "pieces" (masks and a stored weight, 32 columns at a time: `_softmax_weights`), "sums"
    # (exponentials for rows and columns), "logistic" (a stored weight, 32 columns at a time:
    # `_sigmoid_weights`), "nearest" (the best of a row only); "means" (for "sum": of the rows of
    # clusters); "": any.
    epilogue: str
    least_log2: int  # of min(N, M)
    tile: Tile


# The first row that applies is used.
#
# Tiles for tensor cores at D = 1024 [counted]. Shared memory feeds a tile of 64 x 64 at 50 % of the
# tensor cores' rate, 128 x 64 at 57 %, 128 x 128 at 80 % (67 % in 16 warps, whose instructions are
# 64 columns wide), 128 x 256 at 100 %. A score costs 64, 48, 32 and 24 bytes of L2 reads, which
# limits the smaller tiles: N = 32,768 reads 52 GB in tiles of 128 x 64, 34 GB in 128 x 128, 26 GB
# in 128 x 256. On 132 processors, N = M = 1024 has 64 tiles of 128 x 128, which take 5.8 us; 256
# tiles of 64 x 64 are two waves and read 67 MB, 10 us. N = M = 2048 has 128 tiles of 128 x 256, one
# full wave; N = M = 1024 would have 32 of them and leave 100 processors idle. N = M = 4096 has 512
# tiles in 3.9 waves.
TABLE = (
    TableRow((0,), "half", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "tf32", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "ieee", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "fp64", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "difference", "", 0, Tile(64, 64, 32, 4, 1)),
    TableRow((0,), "weighted_difference", "", 0, Tile(32, 32, 64, 4, 1)),
    TableRow((0,), "sum", "", 0, Tile(64, 256, 128, 4, 1)),
    # Nearest centroids: programs are distributed over rows only, and 64 rows per program suffice up
    # to 16,384 rows. Means: clusters, columns of D, and rows per step.
    TableRow(HOPPER, "half", "nearest", 14, Tile(128, 256, 64, 8, 3)),
    TableRow(HOPPER, "half", "nearest", 0, Tile(64, 256, 64, 8, 3)),
    TableRow((), "half", "nearest", 0, Tile(64, 128, 64, 8, 3)),
    TableRow(HOPPER, "sum", "means", 14, Tile(128, 128, 32, 8, 3)),
    TableRow((), "sum", "means", 0, Tile(64, 64, 32, 8, 3)),
    # A whole tile in registers: 255 registers, no spill. sm_100 has 404 spills.
    TableRow(HOPPER, "half", "reduction", 11, Tile(128, 256, 64, 8, 3)),
    # In 128 registers a processor holds two programs: one computes exponentials while the other
    # multiplies. With one program of 128 x 128 and 230 registers, the log-sum-exps of N = 32,768,
    # D = 1024 took 8.8 ms on an H200, a third of which are products.
    TableRow(HOPPER, "half", "sums", 11, Tile(128, 128, 64, 8, 3, 128)),
    TableRow(HOPPER, "half", "logistic", 11, Tile(128, 128, 64, 8, 3, 128)),
    TableRow(HOPPER, "half", "weights", 11, Tile(128, 128, 64, 8, 3)),
    # On sm_100, 128 x 64 with masks of ids causes 14 spills, sums in 128 x 128 500.
    TableRow((100,), "half", "masks", 0, Tile(64, 64, 64, 8, 3)),
    TableRow((100,), "half", "sums", 0, Tile(64, 64, 64, 4, 3)),
    # Softmax weights in 128 x 128: 86 spills on sm_120, 32 with fp32 rows on sm_80.
    TableRow((80, 120, 121), "half", "pieces", 11, Tile(128, 64, 64, 8, 3)),
    # 128 x 128 in 8 warps: 106 spills with masks of ids on sm_90, 378 with noise.
    *(
        TableRow((), "half", epilogue, 11, Tile(128, 64, 64, 8, 3))
        for epilogue in ("weights", "logistic", "narrow", "masks")
    ),
    TableRow((), "half", "", 11, Tile(128, 128, 64, 8, 3)),
    TableRow((), "half", "", 0, Tile(64, 64, 64, 4, 3)),
    *(
        TableRow((), "tf32", epilogue, 11, Tile(128, 64, 32, 8, 3))
        for epilogue in ("weights", "narrow", "masks")
    ),
    TableRow((), "tf32", "", 11, Tile(128, 128, 32, 8, 3)),
    TableRow((), "tf32", "", 0, Tile(64, 64, 32, 4, 3)),
    # 128 fp32 lanes receive 32 words per clock: 8 x 8 products per thread are 4 per word, 100 % of
    # the units' rate; 8 x 4 are 67 %. 128 x 128 causes 58 spills with masks, 101 in pieces on
    # sm_120, 16 in log-sum-exps with ids on sm_89; 128 x 64 causes 8 in those on sm_120.
    TableRow((120, 121), "ieee", "sums", 11, Tile(64, 64, 16, 4, 2)),
    TableRow((86, 89), "ieee", "sums", 11, Tile(128, 64, 16, 8, 2)),
    *(
        TableRow(SMALL, "ieee", name, 11, Tile(128, 64, 16, 8, 2))
        for name in ("weights", "narrow", "masks", "pieces")
    ),
    TableRow(SMALL, "ieee", "", 11, Tile(128, 128, 16, 8, 2)),
    # In 4 warps, l2 has two spills there; in 8 warps, scores of pairs have six on sm_120.
    TableRow((86, 89), "ieee", "", 0, Tile(64, 64, 16, 8, 2)),
    TableRow((), "ieee", "", 0, Tile(64, 64, 16, 4, 2)),
    TableRow((), "fp64", "", 0, Tile(32, 32, 16, 4, 2)),
    # R x C x 4 differences are in registers at once; R x C x 16 would spill. With the bits of a
    # mask, 4 cause two spills on sm_86 and sm_89.
    TableRow((86, 89), "difference", "", 0, Tile(64, 64, 2, 4, 1)),
    TableRow((), "difference", "", 0, Tile(64, 64, 4, 4, 1)),
    TableRow((), "weighted_difference", "", 0, Tile(32, 4, 64, 4, 1)),
    # Without a mask. Half the L2 reads of 64 x 64; on sm_80 it causes 19 spills.
    TableRow(HOPPER, "sum", "reduction", 10, Tile(128, 128, 32, 8, 2)),
    # Masked weights and their parts: 120 spills in 4 warps. 128 columns read the weights half as
    # often as 64, and feed the tensor cores of sm_90 at 57 % instead of 40 %.
    TableRow((), "sum", "", 0, Tile(64, 128, 32, 8, 2)),
)


def table_row(kind: str, N: int, M: int, D: int, epilogue: str = "") -> TableRow:
    """Return the row of the table that applies to N x M scores of a kind of operand."""
    return _table_row(architecture(), kind, min(N, M).bit_length() - 1, epilogue)


@functools.cache
def _table_row(current: int | str, kind: str, log2: int, epilogue: str) -> TableRow:
    for row in TABLE:
        if row.kind == kind and row.epilogue in ("", epilogue) and log2 >= row.least_log2:
            if not row.architectures or current in row.architectures:
                return row
    raise LookupError(f"no tile for {kind} operands")


def tile_of(kind: str, N: int, M: int, D: int, epilogue: str = "") -> Tile:
    """Return the tile for N x M scores of a kind of operand and an epilogue."""
    return table_row(kind, N, M, D, epilogue).tile
