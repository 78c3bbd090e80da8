"""Memory of a rank whose rows go round a ring."""

import os
from collections.abc import Iterator

import pytest

from rank_memory import STEPS, peak
from ranks import Ranks

D = 1024
BLOCKS = 8  # of local rows, 4 D bytes each, that a step may add; gradients are two


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
@pytest.mark.parametrize("name", STEPS)
def test_peak_is_a_few_blocks(ranks: Ranks, name: str) -> None:
    rows = 16384 // 4
    if name.endswith(("-l1", "-l2", "-sqeuclidean")):
        rows //= 4  # distances are slow: a sixteenth of them
    found = ranks.run(peak, name, rows, D)
    assert max(found) < BLOCKS * rows * D * 4 + (64 << 20), [n >> 20 for n in found]
