"""The backends that tests run on, and those whose compiled graphs differ."""

import pytest

from interpreted import INTERPRETED
from itm_kernels import backends

BACKENDS = ["reference", "eager", "auto"]
if INTERPRETED:
    BACKENDS.append("triton")  # `make test-triton`

# With the extension, "auto" gives the graphs of "eager" operation by operation, forward and
# backward, with and without ids: only the namespace of the operators differs.
DIFFERING = [name for name in BACKENDS if name != "eager" or backends.NOT_BUILT]
of_each_graph = pytest.mark.parametrize("backend", DIFFERING, indirect=True)
