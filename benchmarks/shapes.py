"""The measured sizes, each with its reason."""

from typing import NamedTuple

import torch

PAPERS = 128  # batch size of the hinge papers, where launches and Python dominate
USUAL = 1024  # a batch on one GPU, and the largest at which eager l1 takes acceptable time
LARGE = 4096  # contrastive batches; 64 MiB of scores, larger than the caches
WIDTH = 1024  # embedding size of VSE++ and IMC
CLUSTERS, MANY_CLUSTERS = 8, 256  # ITContrast's; enough clusters for a matrix product
REGIONS = 36  # per image, as of a detector
WORDS = (20, 50)  # per caption: MSCOCO's with some padding; long captions
# Memory study: scores of 1 GiB, at which eager still fits in 24 GiB.
MEMORY = 16384, 256
# Time and memory over N, at a width where the work on the N x M pairs dominates.
STUDY = tuple(1 << power for power in range(7, 18, 2)), 16  # 128 ... 131,072
BEYOND_32_BITS = 100_000, 64  # 10^10 pairs


class Size(NamedTuple):
    """Rows, width and precision of one measurement."""

    N: int
    D: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Return the size as it is written in a row's key."""
        return f"N={self.N},D={self.D},{str(self.dtype).removeprefix('torch.')}"

    def tiny(self) -> "Size":
        """Return a tiny size for CI: not a multiple of tiles, and distinct between rows."""
        return Size({PAPERS: 33, USUAL: 40, LARGE: 65}.get(self.N, 33), 24, self.dtype)


def sizes(*rows: int, dtype: torch.dtype = torch.float32) -> list[Size]:
    """Return sizes at the common width, one for every number of rows."""
    return [Size(N, WIDTH, dtype) for N in rows]
