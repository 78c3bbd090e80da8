"""Memory of a rank whose rows go round a ring."""

import os
from collections.abc import Iterator

import pytest

from rank_memory import peak
from ranks import Ranks

D = 1024
# Local rows of 4 D bytes that a rank may hold, inputs aside. Images and texts of the sum of hinges
# go round one after the other, next to the images of the pairs.
BLOCKS = {"max_of_hinges": 8, "sum_of_hinges": 14, "info_nce": 8, "sigmoid": 8}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Four ranks whose allocator returns freed tensors to the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
        found = Ranks(4)
    yield found
    found.close()


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset the peak"
)
@pytest.mark.skipif("ITM_ALL_RANKS" not in os.environ, reason="set ITM_ALL_RANKS=1: minutes")
@pytest.mark.parametrize("name", BLOCKS)
def test_peak_is_a_few_blocks(ranks: Ranks, name: str) -> None:
    rows = 16384 // 4
    found = ranks.run(peak, name, rows, D)
    assert max(found) < BLOCKS[name] * rows * D * 4 + (64 << 20), [n >> 20 for n in found]
