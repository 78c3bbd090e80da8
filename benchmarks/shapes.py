"""The sizes that are measured, and why each is in the set."""

from typing import NamedTuple

import torch

PAPERS = 128  # the batch of the hinge papers, where launches and Python decide
USUAL = 1024  # a batch on one GPU, and the largest at which eager l1 is bearable
LARGE = 4096  # contrastive batches; 64 MiB of scores, beyond every cache
WIDTH = 1024  # VSE++'s and IMC's embedding
CLUSTERS, MANY_CLUSTERS = 8, 256  # ITContrast's; and as many as make a product of its own
# Memory: scores of 1 GiB, at which eager still fits 24 GiB.
MEMORY = 16384, 256
# Time and memory over N at a width that leaves the N x M part to dominate.
STUDY = tuple(1 << power for power in range(7, 18, 2)), 16  # 128 ... 131,072
BEYOND_32_BITS = 100_000, 64  # 10^10 pairs


class Size(NamedTuple):
    """Rows, width and precision of one measurement."""

    N: int
    D: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Return the size as it stands in a row's key."""
        return f"N={self.N},D={self.D},{str(self.dtype).removeprefix('torch.')}"

    def tiny(self) -> "Size":
        """Return a size that runs in CI: odd, and still distinct between rows."""
        return Size({PAPERS: 33, USUAL: 40, LARGE: 65}.get(self.N, 33), 24, self.dtype)


def sizes(*rows: int, dtype: torch.dtype = torch.float32) -> list[Size]:
    """Return sizes at the common width."""
    return [Size(N, WIDTH, dtype) for N in rows]
