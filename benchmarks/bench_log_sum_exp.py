"""InfoNCE, InfoCMR without extras, SigLIP. Least work: one product forward, two backward."""

from functools import partial

import pytest
import torch

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import eager, keops, packages, plain
from benchmarks.shapes import LARGE, PAPERS, USUAL, Size, sizes
from itm_kernels import functional

FP32, BF16 = sizes(PAPERS, USUAL, LARGE), sizes(USUAL, LARGE, dtype=torch.bfloat16)


def row_of(operator: str, size: Size, device: str, uses: str = "log_sum_exp") -> Row:
    """Return the row of a loss over all pairs."""
    product = 2.0 * size.N * size.N * size.D
    work = Work("product", product, 2 * product)
    return Row(operator, size, inputs.paired(size, device), work, uses=(uses,))


@pytest.mark.parametrize("size", FP32 + BF16, ids=str)
def bench_info_nce(compare, sized, compiled, device, size):
    size = sized(size)
    others = {"keops": keops.info_nce} if size.N <= USUAL and size.dtype.itemsize == 4 else {}
    compare(
        row_of("info_nce", size, device),
        partial(functional.info_nce_loss, logit_scale=eager.SCALE),
        eager.info_nce,
        eager=plain(eager.info_nce),
        compile=compiled(eager.info_nce),
        open_clip=packages.clip,
        metric_learning=partial(packages.metric_learning_nt_xent, size.N),
        inf_cl=packages.inf_cl,
        memeff=packages.memeff_clip,
        **others,
    )


@pytest.mark.parametrize("size", sizes(LARGE), ids=str)
def bench_info_cmr(compare, sized, compiled, device, size):
    size = sized(size)
    compare(
        row_of("info_cmr without extras", size, device),
        partial(functional.info_cmr_loss, temperature=1 / eager.SCALE, num_clusters=0, num_noise=0),
        eager.info_cmr,
        eager=plain(eager.info_cmr),
        compile=compiled(eager.info_cmr),
    )


@pytest.mark.parametrize("size", FP32, ids=str)
def bench_sigmoid(compare, sized, compiled, device, size):
    size = sized(size)
    compare(
        row_of("sigmoid", size, device, "sigmoid"),
        partial(functional.sigmoid_loss, logit_scale=eager.SCALE, logit_bias=eager.BIAS),
        eager.sigmoid,
        eager=plain(eager.sigmoid),
        compile=compiled(eager.sigmoid),
        open_clip=packages.siglip,
        siglip_kernel=packages.siglip_kernel,
    )
