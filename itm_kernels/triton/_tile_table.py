"""The tile of every kernel, from one table.

Nothing is tuned at run time: results depend on the inputs, not on a machine's mood.
"""

from typing import Any, NamedTuple

import triton

INTERPRETED: bool = triton.knobs.runtime.interpret


def architecture() -> int | str:
    """Return the current device's architecture: 80, 90, "gfx942"; 0 when interpreted."""
    return 0 if INTERPRETED else triton.runtime.driver.active.get_current_target().arch


# Families with tiles or operands of their own. SMALL: 99 KB of shared memory, mma.sync.
SMALL = (86, 89, 120, 121)
HOPPER = (90,)


class Tile(NamedTuple):
    """How many rows, columns and elements of D a program takes at once, and with what."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def programs(self, N: int, M: int) -> tuple[int]:
        """Return the grid of a kernel that finds its tile with `_score_tiles.program_tile`."""
        return (triton.cdiv(N, self.rows) * triton.cdiv(M, self.columns),)

    def options(self) -> dict[str, Any]:
        """Return the tile as a kernel's arguments."""
        return {
            **{"ROWS": self.rows, "COLUMNS": self.columns, "DEPTH": self.depth},
            **{"num_warps": self.warps, "num_stages": self.stages},
        }


class TableRow(NamedTuple):
    """A line of the table: it holds from so many rows on."""

    architectures: tuple[int | str, ...]  # (): any
    # The kind of operands: "half" (and parts), "tf32", "ieee", "fp64"; without scores also
    # "difference", "weighted_difference", "sum".
    kind: str
    # What a kernel does with the scores: "reduction" (rows and columns, where they lie), "weights"
    # (exponentials, and a weight to store), "narrow" (more values per score than those), "masks"
    # (and those of ids), "pieces" (those and weights, 32 columns at a time: `_softmax_weights`),
    # "sums" (exponentials of rows and columns), "nearest" (a row's best alone); "means" (of a sum:
    # of clusters' rows); "": any.
    epilogue: str
    least_log2: int  # of the smaller number of rows
    tile: Tile


# The first line that holds counts.
#
# Tiles of the tensor cores, D = 1024 [counted]. Shared memory feeds a tile of 64 x 64 at 50 % of
# the tensor cores' rate, 128 x 64 at 57 %, 128 x 128 at 80 % (67 % in 16 warps, whose instructions
# are 64 columns wide), 128 x 256 at 100 %. A score costs 64, 48, 32 and 24 bytes of L2 reads, which
# bounds the smaller tiles: at N = 32,768 52 GB in tiles of 128 x 64, 34 GB in 128 x 128, 26 GB in
# 128 x 256. Against 132 processors, N = M = 1024 are 64 tiles of 128 x 128, in 5.8 us; 256 of
# 64 x 64 are two waves, and read 67 MB, 10 us. N = M = 2048 are 128 tiles of 128 x 256, one full
# wave; at 1024, 32 of them would leave 100 processors idle. N = M = 4096 are 512 in 3.9 waves.
TABLE = (
    TableRow((0,), "half", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "tf32", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "ieee", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "fp64", "", 0, Tile(64, 64, 128, 4, 1)),
    TableRow((0,), "difference", "", 0, Tile(64, 64, 32, 4, 1)),
    TableRow((0,), "weighted_difference", "", 0, Tile(32, 32, 64, 4, 1)),
    TableRow((0,), "sum", "", 0, Tile(64, 256, 128, 4, 1)),
    # Rows and their nearest centroids: programs share out the rows alone, for which 64 a program
    # suffice up to 16,384 of them. Means: clusters, columns of D, and rows at once.
    TableRow(HOPPER, "half", "nearest", 14, Tile(128, 256, 64, 8, 3)),
    TableRow(HOPPER, "half", "nearest", 0, Tile(64, 256, 64, 8, 3)),
    TableRow((), "half", "nearest", 0, Tile(64, 128, 64, 8, 3)),
    TableRow(HOPPER, "sum", "means", 14, Tile(128, 128, 32, 8, 3)),
    TableRow((), "sum", "means", 0, Tile(64, 64, 32, 8, 3)),
    # Both keep every value of a tile in registers: 255 of them, without a spill. sm_100 has 404.
    TableRow(HOPPER, "half", "reduction", 11, Tile(128, 256, 64, 8, 3)),
    TableRow(HOPPER, "half", "pieces", 11, Tile(128, 256, 64, 8, 3)),
    TableRow(HOPPER, "tf32", "pieces", 11, Tile(128, 256, 32, 8, 3)),
    TableRow(HOPPER, "half", "weights", 11, Tile(128, 128, 64, 8, 3)),
    # On sm_100 128 x 64 are 14 spills beside masks of ids, sums in 128 x 128 500.
    TableRow((100,), "half", "masks", 0, Tile(64, 64, 64, 8, 3)),
    TableRow((100,), "half", "sums", 0, Tile(64, 64, 64, 4, 3)),
    # 128 x 128 in 8 warps: 106 spills beside the masks of ids on sm_90, 378 beside noise.
    *(
        TableRow((), "half", epilogue, 11, Tile(128, 64, 64, 8, 3))
        for epilogue in ("weights", "narrow", "masks")
    ),
    TableRow((), "half", "", 11, Tile(128, 128, 64, 8, 3)),
    TableRow((), "half", "", 0, Tile(64, 64, 64, 4, 3)),
    *(
        TableRow((), "tf32", epilogue, 11, Tile(128, 64, 32, 8, 3))
        for epilogue in ("weights", "narrow", "masks")
    ),
    TableRow((), "tf32", "", 11, Tile(128, 128, 32, 8, 3)),
    TableRow((), "tf32", "", 0, Tile(64, 64, 32, 4, 3)),
    # 128 fp32 lanes are fed with 32 words a clock: 8 x 8 products of a thread are 4 a word, 100 %
    # of the units' rate; 8 x 4 are 67 %. Beside masks 128 x 128 are 58 spills, in pieces
    # 101 on sm_120.
    *(
        TableRow(SMALL, "ieee", name, 11, Tile(128, 64, 16, 8, 2))
        for name in ("weights", "narrow", "masks", "pieces")
    ),
    TableRow(SMALL, "ieee", "", 11, Tile(128, 128, 16, 8, 2)),
    # In 4 warps, l2 spills twice there; in 8 warps, scores of pairs 6 times on sm_120.
    TableRow((86, 89), "ieee", "", 0, Tile(64, 64, 16, 8, 2)),
    TableRow((), "ieee", "", 0, Tile(64, 64, 16, 4, 2)),
    TableRow((), "fp64", "", 0, Tile(32, 32, 16, 4, 2)),
    # Of differences R x C x 4 are in registers at once: with 16 of 4 they spill.
    # On sm_86 and 89, with the bits of a mask beside them, 4 are 2 spills.
    TableRow((86, 89), "difference", "", 0, Tile(64, 64, 2, 4, 1)),
    TableRow((), "difference", "", 0, Tile(64, 64, 4, 4, 1)),
    TableRow((), "weighted_difference", "", 0, Tile(32, 4, 64, 4, 1)),
    # Without a mask. L2 reads are half of those in 64 x 64; on sm_80 they are 19 spills.
    TableRow(HOPPER, "sum", "reduction", 10, Tile(128, 128, 32, 8, 2)),
    # Weights of a mask beside their parts: 120 spills in 4 warps. 128 columns read the weights half
    # as often as 64, and feed the tensor cores of sm_90 at 57 % instead of 40 %.
    TableRow((), "sum", "", 0, Tile(64, 128, 32, 8, 2)),
)


def table_row(kind: str, N: int, M: int, D: int, epilogue: str = "") -> TableRow:
    """Look up the line of the table that holds for N x M scores of a kind of operand."""
    current, log2 = architecture(), min(N, M).bit_length() - 1
    for row in TABLE:
        if row.kind == kind and row.epilogue in ("", epilogue) and log2 >= row.least_log2:
            if not row.architectures or current in row.architectures:
                return row
    raise LookupError(f"no tile for {kind} operands")


def tile_of(kind: str, N: int, M: int, D: int, epilogue: str = "") -> Tile:
    """Return the tile for N x M scores of a kind of operand, in a kernel of some epilogue."""
    return table_row(kind, N, M, D, epilogue).tile
