"""Markers for tests of interpreted Triton kernels."""

import pytest

from itm_kernels import backends

INTERPRETED = backends.INTERPRETED and backends.HAS_TRITON
needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="TRITON_INTERPRET=1 and triton needed"
)
# Triton's interpreter computes in numpy, which warns of NaN and Inf.
beyond_finite = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
