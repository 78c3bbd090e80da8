"""The best of a tile's candidates for every anchor, and the best of all tiles."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._score_tiles import maximum_with_index, no_key


class TileMaxima(NamedTuple):
    """For every tile and anchor, the best of the tile's candidates."""

    key: Tensor  # [tiles, anchors] int32, int64 for fp64
    winner: Tensor  # [tiles, anchors] int32

    def arguments(self, prefix: str) -> dict[str, Any]:
        """Return what a kernel needs to reduce the tiles."""
        tiles = self.key.shape[0]
        return {f"{prefix}_key": self.key, f"{prefix}_index": self.winner, f"{prefix}_tiles": tiles}


@triton.jit
def store_tile_maximum(keys, others, key, index, tile, anchors, a, AXIS: tl.constexpr):
    """Leave the best of a tile `[R, C]` along an axis for each of its anchors a; return indices."""
    best, winner = maximum_with_index(keys, others, AXIS)
    at = tile.to(tl.int64) * anchors + a
    tl.store(key + at, best, mask=a < anchors)
    tl.store(index + at, winner, mask=a < anchors)
    return winner


@triton.jit
def maximum_over_tiles(key, index, tiles, anchors, at, TILES: tl.constexpr):
    """Return the index of the best candidate of some anchors, -1 for none.

    Tiles are reduced in chunks and in order: a later one must be better to win.
    """
    none: tl.constexpr = no_key(key.dtype.element_ty)
    best = tl.full((at.shape[0],), none, key.dtype.element_ty)
    found = tl.full((at.shape[0],), -1, tl.int32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        place_of = tile[:, None].to(tl.int64) * anchors + at[None, :]
        inside = (tile < tiles)[:, None]
        keys = tl.load(key + place_of, mask=inside, other=none)
        indices = tl.load(index + place_of, mask=inside, other=0)
        chunk, candidate = maximum_with_index(keys, indices, 0)
        found = tl.where(chunk > best, candidate, found)
        best = tl.maximum(chunk, best)
    return found
