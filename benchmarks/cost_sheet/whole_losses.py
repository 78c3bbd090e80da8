"""Losses of a small batch that are one CUDA operator: their launches, and the cost models of these.

As in `small_operators.py`, tests compare the lists with the launches on the emulator.
"""

import math
from functools import partial
from typing import Any

from torch import Tensor

from benchmarks.cost_sheet import cuda_models as cuda
from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.cuda_models import CLUSTERS, ITERATIONS, JOIN, Batch, waiting
from benchmarks.cost_sheet.rates import PROCESSORS, SHARED_BYTES, SHARED_CLOCKS
from benchmarks.cost_sheet.small_operators import EXPONENTIALS, Operator, aten, sides
from itm_kernels import functional

NOISE = 128
LAST = 4  # trips of the last block: its ticket, a fence, the results of the other blocks [E]


def products(batch: Batch, tiles: int, wide: int = 4) -> Count:
    """Count the products of several pairs of matrices in one launch, with squared row norms."""
    parts = max(1, min(264 // tiles, math.ceil(batch.D / 64)))
    depth = math.ceil(math.ceil(batch.D / parts) / 16) * 16
    blocks = tiles * math.ceil(batch.D / depth)
    resident = math.ceil(blocks / PROCESSORS)
    reads = 2 * 8 * 32 * 2 * wide / SHARED_BYTES
    of_warp = SHARED_CLOCKS + 32 * wide / 4 + 10
    clocks = depth / 2 * max(resident * reads, of_warp) + depth / 16 * 40
    return waiting("dot_products_kernel", blocks, 2, clocks, 64.0 * depth * max(wide, batch.size))


def tiles_of(*pairs: tuple[int, int]) -> int:
    """Return the number of 32 x 32 tiles of score matrices, given their sizes."""
    return sum(math.ceil(n / 32) * math.ceil(m / 32) for n, m in pairs)


def _weighted(batch: Batch, others: int, finish: bool) -> Count:
    """Count the products of a gradient with `others` rows, as `cuda_models.row_gradient`."""
    blocks = 2 * math.ceil(batch.N / 16) * math.ceil(batch.D / 64) + finish
    resident = math.ceil(blocks / PROCESSORS)
    reads = 2 * 2 * 32 * 16 / SHARED_BYTES
    clocks = others * max(resident * reads, SHARED_CLOCKS / 4 + 16) + others / 32 * 100
    return waiting("row_gradient_kernel", blocks, 5, clocks, others * (64.0 * batch.size + 16 * 4))


def _max_of_hinges(batch: Batch) -> list[Count]:
    scores = products(batch, tiles_of((batch.N, batch.N)))
    reduction = cuda.score_reduction("max_of_hinges_kernel", batch, more=1 + LAST)
    return [scores, reduction, cuda.gather(batch, 3 * batch.N)]


def _imc(batch: Batch) -> list[Count]:
    N = batch.N
    tiles = tiles_of((N, N), (N, N), (N, N))
    parts = max(1, 264 // tiles)
    # Half of the blocks reduce a hinge's column and row, the others a row; all reduce a band.
    reduction = cuda.score_reduction(
        "imc_kernel", batch, parts=parts, more=3 + 2 * batch.many + LAST
    )
    reduction = reduction._replace(programs=2 * reduction.programs)
    # With a tenth of the weights in the band, every chunk of 16 x 32 has a non-zero weight.
    gradient = _weighted(batch, 2 * N, False)
    return [products(batch, tiles), reduction, gradient]


def _contrast(batch: Batch, kernel: str) -> list[Count]:
    """Count a reduction of columns, for a softmax also of rows, after that of the norms."""
    scores = products(batch, tiles_of((batch.N, batch.N)))
    norms = 2 * math.ceil(batch.N / 256)
    reduction = cuda.score_reduction(kernel, batch, more=1 + norms + LAST)
    return [scores, reduction, _weighted(batch, batch.N, True)]


def _info_cmr(batch: Batch, clusters: int, noise: int) -> list[Count]:
    """Count one block per anchor; all products but the last are in fp64."""
    N, M = batch.N, batch.N
    made = [cuda.unit_rows("cmr_unit_rows_kernel", batch)._replace(programs=2 * N + noise)]
    pairs = [(N, M), *([(N, N), (M, M)] if clusters else [])]
    pairs += [(N, noise), (M, noise)] if noise else []
    tiles = tiles_of(*pairs)
    parts = max(1, min(264 // tiles, 16))
    read = batch.N / 1024 * 4 * math.ceil(parts / 4) + math.ceil(parts / 4)
    rounds = math.ceil(2 * N / PROCESSORS / 2)
    draws = aten(*(["exponential_"] * 2 * bool(clusters)), *(["normal_"] * bool(noise)))
    draws += aten("_to_copy") if noise and batch.size == 2 else []
    both: list[Count] = []
    members = math.ceil(M / CLUSTERS / 4)
    synthesis = 0.0
    if clusters:
        near = 2 * math.ceil(N / 32) + CLUSTERS + 20 + math.ceil(CLUSTERS * N / 32 / 16) * members
        added = math.ceil(N * N / 2048) * math.ceil(parts / 4)
        clocks = CLUSTERS * (10 * JOIN + 200) + ITERATIONS * near * 40
        both.append(waiting("cmr_cluster_kernel", 2, added + 3 * CLUSTERS, clocks, 8.0 * N * N))
        both.append(cuda.kam_solve(batch)._replace(name="cmr_kam_solve_kernel"))
        synthesis = 8 + 3.0 * members * math.ceil(M / 256)
    reduction = rounds * (3 + 2 * read + synthesis) + LAST
    clocks = rounds * (8 * EXPONENTIALS + 2000)
    total = waiting("cmr_total_kernel", 2 * N, reduction, clocks, 8.0 * (M + noise) * parts)
    score_gradient = waiting(
        "cmr_score_gradient_kernel", 2 * N, rounds * (4 + read), rounds * 8 * EXPONENTIALS
    )
    gradient = _weighted(batch, M + noise, True)
    return [
        *draws, *made, products(batch, tiles, 8), *both, total, score_gradient, gradient
    ]  # fmt: skip


def _of(name: str) -> Any:
    def run(image: Tensor, text: Tensor, backend: str, **options: Any) -> Tensor:
        return getattr(functional, name)(image, text, backend=backend, **options)

    return run


WHOLE: dict[str, Operator] = {
    "max_of_hinges_total": Operator(_of("max_of_hinges_loss"), sides, _max_of_hinges),
    "imc_total": Operator(_of("imc_loss"), sides, _imc),
    "info_nce_total": Operator(
        _of("info_nce_loss"), sides, partial(_contrast, kernel="info_nce_kernel")
    ),
    "sigmoid_total": Operator(
        _of("sigmoid_loss"), sides, partial(_contrast, kernel="sigmoid_total_kernel")
    ),
    "info_cmr_total": Operator(
        _of("info_cmr_loss"), sides, partial(_info_cmr, clusters=CLUSTERS, noise=NOISE)
    ),
}
