"""The l1 distance matrix. Least work: two instructions per element forward, three backward."""

from functools import partial

import pytest

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, plain
from benchmarks.shapes import USUAL, sizes
from itm_kernels import ops


@pytest.mark.parametrize("size", sizes(USUAL), ids=str)
def bench_l1(compare, sized, device, size):
    size = sized(size)
    elements = float(size.N) * size.N * size.D
    row = Row(
        "similarity",
        size,
        inputs.paired(size, device),
        Work("instructions", 2 * elements, 3 * elements),
        case="l1",
    )
    compare(row, partial(ops.similarity, metric="l1"), eager.l1, eager=plain(eager.l1))
