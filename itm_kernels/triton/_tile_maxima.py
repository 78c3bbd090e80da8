"""The highest score of each anchor in a tile of candidates, and the maximum over all tiles."""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._score_tiles import maximum_with_index, no_key


class TileMaxima(NamedTuple):
    """The highest key of each tile and anchor, and the candidate that has it."""

    key: Tensor  # [tiles, anchors] int32, int64 for fp64
    candidate: Tensor  # [tiles, anchors] int32

    def arguments(self, prefix: str) -> dict[str, Any]:
        """Return the arguments of a kernel that reduces the tiles."""
        tiles = self.key.shape[0]
        return {
            f"{prefix}_key": self.key,
            f"{prefix}_index": self.candidate,
            f"{prefix}_tiles": tiles,
        }


@triton.jit
def store_tile_maximum(keys, candidates, key, index, tile, anchors, a, AXIS: tl.constexpr):
    """Store the maximum of keys `[R, C]` along an axis for each anchor; return its candidate."""
    best, candidate = maximum_with_index(keys, candidates, AXIS)
    at = tile.to(tl.int64) * anchors + a
    tl.store(key + at, best, mask=a < anchors)
    tl.store(index + at, candidate, mask=a < anchors)
    return candidate


@triton.jit
def maximum_over_tiles(key, index, tiles, anchors, at, TILES: tl.constexpr):
    """Return the candidate with the highest key of each anchor, -1 for none.

    Tiles are reduced in chunks and in order; of equal keys the earlier tile's is kept.
    """
    none: tl.constexpr = no_key(key.dtype.element_ty)
    best = tl.full((at.shape[0],), none, key.dtype.element_ty)
    found = tl.full((at.shape[0],), -1, tl.int32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        offset = tile[:, None].to(tl.int64) * anchors + at[None, :]
        inside = (tile < tiles)[:, None]
        keys = tl.load(key + offset, mask=inside, other=none)
        indices = tl.load(index + offset, mask=inside, other=0)
        chunk, candidate = maximum_with_index(keys, indices, 0)
        found = tl.where(chunk > best, candidate, found)
        best = tl.maximum(chunk, best)
    return found
