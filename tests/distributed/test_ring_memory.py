"""Memory of a rank whose rows go round a ring."""

import os
from pathlib import Path

import pytest

from rank_memory import LOSSES, peak
from ranks import Ranks

D = 1024


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset the peak"
)
@pytest.mark.skipif("ITM_ALL_RANKS" not in os.environ, reason="set ITM_ALL_RANKS=1: a minute")
@pytest.mark.parametrize("name", LOSSES)
def test_peak_is_a_few_blocks(four: Ranks, name: str) -> None:
    rows = 16384 // 4
    assert Path("/proc/self/clear_refs").exists()
    found = four.run(peak, name, rows, D)
    assert max(found) < 8 * rows * D * 4 + (64 << 20), [n >> 20 for n in found]
