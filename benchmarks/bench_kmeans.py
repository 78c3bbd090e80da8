"""k-means from given centroids, with the same fixed number of iterations for all contenders.

Least work: one product with the centroids per iteration, and one for the returned assignment.
The compared value is the sum of squared distances to the assigned centroids. Assignments are not
compared: a row between two centroids may be assigned to either.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, packages, plain
from benchmarks.shapes import CLUSTERS, LARGE, MANY_CLUSTERS, sizes
from itm_kernels import ops

ITERATIONS = 10


@pytest.mark.parametrize("size", sizes(LARGE), ids=str)
@pytest.mark.parametrize("num_clusters", [CLUSTERS, MANY_CLUSTERS])
def bench_kmeans(compare, sized, device, size, num_clusters):
    size = sized(size)
    x = inputs.paired(size, device)[0]
    num_clusters = min(num_clusters, size.N // 4)
    start = x[:num_clusters].clone()
    row = Row(
        "kmeans",
        size,
        (x,),
        Work("product", 2.0 * size.N * num_clusters * size.D * (ITERATIONS + 1), 0),
        case=f"K={num_clusters}",
        differentiable=False,
        facts={"clusters": num_clusters, "iterations": ITERATIONS},
        value=lambda found: (x.double() - found[1].double()[found[0]]).square().sum(),
        # A row between two centroids moves both, and these move other rows.
        tolerance=1e-3,
    )

    def ours(x: Tensor) -> ops.KMeans:
        return ops.kmeans(x, num_clusters, init=start, iterations=ITERATIONS)

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        return eager.kmeans(x, start.to(x.dtype), ITERATIONS)

    compare(
        row,
        ours,
        formula,
        eager=plain(formula),
        scikit_learn=partial(packages.scikit_learn_kmeans, start, ITERATIONS),
        faiss=partial(packages.faiss_kmeans, start, ITERATIONS, torch.get_num_threads()),
    )
