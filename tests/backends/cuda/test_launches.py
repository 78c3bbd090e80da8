"""The number of kernels that whole steps of small batches launch on CUDA.

At the papers' batch of 128 a launch costs more than its computation. PyTorch's operators around
our kernels count as well: the launches of normalize and of a loss's scalars are included.

InfoCMR without synthesis and noise was 77 launches forward and backward, 73 of them PyTorch's, when
it had kernels for log-sum-exp alone, and is 6; InfoNCE was 79, the sigmoid loss 43. With synthesis
and noise PyTorch's were 421, of which the draws of k-means++ were 160; by its parts the loss was 47
launches of ours and 42 of PyTorch's, as one operator it is 7 and 4: three draws, and autograd's.
"""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import nn

from cuda_launches import of_step
from emulated import as_native, needs_compiler
from itm_kernels import _checks, losses
from loss_cases import batch

pytestmark = needs_compiler

# Our own launches, and ATen's. Unit rows and cross-entropies by themselves are Triton's, one
# launch each way, which the emulator lacks: PyTorch's formulas replace them.
STEPS: dict[str, tuple[nn.Module, int, int]] = {
    "max_of_hinges": (losses.MaxOfHingesLoss(), 3, 1),
    "sum_of_hinges": (losses.SumOfHingesLoss(), 4, 2),
    "imc": (losses.IMCLoss(), 3, 1),
    "sigmoid": (losses.SigmoidLoss(), 3, 1),
    "info_nce": (losses.InfoNCELoss(), 3, 1),
    "info_cmr without extras": (losses.InfoCMRLoss(num_clusters=0, num_noise=0), 3, 1),
    # Synthesis with a kernel associative memory; no more noise and clusters than the emulator's
    # grids hold.
    "info_cmr": (losses.InfoCMRLoss(num_noise=8, num_clusters=3), 7, 4),
    "info_cmr per anchor": (losses.InfoCMRLoss(num_noise=8, clustering="per_anchor"), 44, 187),
}


# Copies among ATen's that a binding or autograd makes: of centroids and of rows in fp64, and, of
# rows in 16 bits, those in fp32 and gradients back.
COPIES = {"info_cmr per anchor": (6, 11)}


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    # On a device no loss reads values, which it may do on the CPU.
    with as_native(), patch.object(_checks, "can_read", return_value=False):
        yield


# Two pairs: no grid is split, as the emulator does with more than 7 blocks.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_launches_of_a_step(name: str, dtype: torch.dtype) -> None:
    loss, own, aten = STEPS[name]
    found = of_step(loss, *batch(2, 8, dtype))
    # Noise is drawn in fp32 and rounded to the rows' dtype.
    aten += dtype == torch.bfloat16 and getattr(loss, "num_noise", 0) > 0
    aten += COPIES.get(name, (0, 0))[dtype == torch.bfloat16]
    assert (found.own, found.aten) == (own, aten), found.operators


@pytest.mark.parametrize("name", STEPS)
def test_a_batch_of_128_launches_no_more_of_atens(name: str) -> None:
    loss, _, aten = STEPS[name]
    found = of_step(loss, *batch(128, 8, torch.float32))
    aten += COPIES.get(name, (0, 0))[0]
    assert found.aten == aten, found.operators
