"""Synthetic vectors of 8 clusters, with gradients of anchors and members.

Least work: two products forward (logits and weighted sum) and four backward (the gradients of both
operands of each). kam adds one small linear system per cluster, which is not counted.
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

# Half the typical distance of two members, so that several members have weight. At the paper's .1
# every softmax is one-hot: that is no faster, and hides errors.
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

    # eager loops over the clusters and gathers the members of each. The reference masks all members
    # instead, which takes 8 times the products but supports ids and a clustering per anchor.
    formula = partial(eager.rbf_synthesis, **options)
    others = {"eager": plain(formula), "reference": plain(partial(vectors, backend="reference"))}
    if weights == "attention":
        others["keops"] = partial(keops.rbf_attention, CLUSTERS, SIGMA)
    # For a cluster with one member KeOps compiles four other formulas, 7 s each.
    assert torch.bincount(assignment, minlength=CLUSTERS).min() > 1
    compare(row, vectors, formula, **others)
