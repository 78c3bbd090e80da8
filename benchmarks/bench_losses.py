"""Whole losses as a training step calls them, at the papers' batch size and a common one.

InfoCMR draws centroids and noise, so it is compared with our own plain PyTorch and the same draws.
Least work: one product per score matrix forward, and two backward where the whole matrix has a
gradient.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import inputs, ours
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, plain
from benchmarks.shapes import PAPERS, USUAL, Size, sizes
from itm_kernels import functional

SIZES = pytest.mark.parametrize("size", sizes(PAPERS, USUAL), ids=str)


USES = {
    "imc loss": ("max_of_hinges", "intra_modal"),
    "itm loss": ("sample_negatives",),
    "ito loss": ("log_sum_exp",),
    "info_cmr loss": ("log_sum_exp", "kmeans", "rbf_synthesis_logits"),
}


def row_of(
    name: str, size: Size, tensors: tuple[Tensor, ...], forward: float, backward: float
) -> Row:
    """Return the row of a loss, given its products of a score matrix forward and backward."""
    product = 2.0 * size.N * size.N * size.D
    work = Work("product", forward * product, backward * product)
    return Row(name, size, tensors, work, uses=USES[name])


@SIZES
def bench_imc(compare, sized, compiled, device, size):
    size = sized(size)
    # The scores, and half a matrix for each modality. The hinges' gradient is a gather.
    row = row_of("imc loss", size, inputs.paired(size, device), 2, 2)
    others = {"eager": plain(eager.imc), "compile": compiled(eager.imc)}
    compare(row, functional.imc_loss, eager.imc, **others)


@SIZES
def bench_itm(compare, sized, compiled, device, size):
    size = sized(size)
    row = row_of("itm loss", size, inputs.paired(size, device), 1, 0)
    compare(row, ours.itm, eager.itm, eager=plain(eager.itm), compile=compiled(eager.itm))


@SIZES
def bench_ito(compare, sized, compiled, device, size):
    size = sized(size)
    views = [inputs.paired(size, device, seed) for seed in range(2)]
    images, texts = (torch.stack(side) for side in zip(*views, strict=True))
    tensors = images, texts, images + texts
    # Four pairs of views, and three matrices of the fused vectors (two of them symmetric).
    row = row_of("ito loss", size, tensors, 6, 12)
    compare(row, ours.ito, eager.ito, eager=plain(eager.ito), compile=compiled(eager.ito))


@SIZES
def bench_info_cmr(compare, sized, device, size):
    size = sized(size)

    def loss(backend: str) -> Callable[..., Tensor]:
        def function(image: Tensor, text: Tensor) -> Tensor:
            draw = torch.Generator(device).manual_seed(0)
            # The reference runs in fp32 too: in fp64 the generator would draw other noise.
            rows = image.float(), text.float()
            return functional.info_cmr_loss(*rows, generator=draw, backend=backend)

        return function

    # The batch, then centroids, logits and norms of the synthetic vectors in both directions
    # (about 2 products each).
    row = row_of("info_cmr loss", size, inputs.paired(size, device), 5, 4)
    row.facts["compared with"] = "plain PyTorch in fp32, for equal draws"
    compare(row, loss("auto"), loss("reference"), reference=partial(loss, "reference"))
