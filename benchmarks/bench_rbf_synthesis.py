"""Synthetic vectors of 8 clusters, gradients to anchors and members.

Least work: logits and weighted sum, two products forward; the gradients of both operands of both,
four backward. kam adds one small system per cluster, which is not counted.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, keops, plain
from benchmarks.shapes import CLUSTERS, USUAL, sizes
from itm_kernels import ops

# Half the typical distance of two members: several of them count. At the paper's .1 every softmax
# is one-hot, which is no faster, but then errors are not seen.
SIGMA, RIDGE = 0.3, 1e-4


@pytest.mark.parametrize("size", sizes(USUAL), ids=str)
@pytest.mark.parametrize("weights", ("kam", "attention"))
def bench_vectors(compare, sized, device, size, weights):
    size = sized(size)
    anchors, members = inputs.paired(size, device)
    start = members[-CLUSTERS:]
    assignment = ops.kmeans(members, CLUSTERS, init=start).assignment
    product = 2.0 * size.N * size.N * size.D
    row = Row(
        "rbf_synthesis",
        size,
        (anchors, members, assignment),
        Work("product", 2 * product, 4 * product),
        case=f"vectors {weights}",
        facts={"clusters": CLUSTERS, "sigma": SIGMA},
    )
    options: dict[str, Any] = {
        "num_clusters": CLUSTERS,
        "sigma": SIGMA,
        "weights": weights,
        "ridge": RIDGE,
    }

    def vectors(
        anchors: Tensor, members: Tensor, assignment: Tensor, backend: str = "auto"
    ) -> Tensor:
        return ops.rbf_synthesis(anchors, members, assignment, **options, backend=backend).vectors

    # Two loops over the clusters: over each one's own members, gathered, and with masks over all
    # members, which is 8 times the products but takes ids and a clustering per anchor as well.
    formula = partial(eager.rbf_synthesis, **options)
    others = {"eager": plain(formula), "reference": plain(partial(vectors, backend="reference"))}
    if weights == "attention":
        others["keops"] = partial(keops.rbf_attention, CLUSTERS, SIGMA)
    # A cluster of one member has other formulas to KeOps: four, which it compiles for 7 s each.
    assert torch.bincount(assignment, minlength=CLUSTERS).min() > 1
    compare(row, vectors, formula, **others)
