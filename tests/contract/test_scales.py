"""A logit scale that is 0 or not finite: NaN shows, whatever the library of products does.

Libraries leave the product out for a factor of 0, and some for NaN, from 16 rows on.
"""

import pytest
import torch
from torch import Tensor

from itm_kernels import functional as F
from itm_kernels import ops
from itm_kernels.compat.open_clip import SigLipLoss

N, D = 20, 8


def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, D, requires_grad=True), torch.randn(N, D, requires_grad=True)


def gradients(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, inputs)])


# The interpreter of Triton multiplies in numpy, which warns.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("function", [F.info_nce_loss, F.sigmoid_loss], ids=lambda f: f.__name__)
def test_a_scale_that_is_not_finite_shows(function, value: float, backend: str) -> None:
    image, text = rows()
    scale = torch.tensor(value, requires_grad=True)
    loss = function(image, text, logit_scale=scale, backend=backend)
    assert not loss.isfinite()
    assert not gradients(loss, image, text, scale).isfinite().all()


def test_a_scale_that_is_nan_shows_in_every_sum(backend: str) -> None:
    found = ops.log_sum_exp(*rows(), torch.tensor(torch.nan), backend=backend)
    assert found.row.isnan().all() and found.column.isnan().all()


def test_a_row_that_is_nan_shows_at_scale_zero(backend: str) -> None:
    image, text = rows()
    with torch.no_grad():
        image[3, 2] = torch.nan
    loss = SigLipLoss()
    loss.backend = backend
    value = loss(image, text, torch.tensor(0.0), torch.tensor(-1.0))
    assert value.isnan() and not gradients(value, image, text).isfinite().all()
    assert ops.log_sum_exp(image, text, 0.0, backend=backend).row[3].isnan()


@pytest.mark.parametrize("loss", [SigLipLoss(), SigLipLoss(chunk_size=8)])
def test_a_scale_of_zero(loss: SigLipLoss, backend: str) -> None:
    image, text = rows()
    loss.backend = backend
    value = loss(image, text, torch.tensor(0.0), torch.tensor(-1.0))
    wanted = N * torch.nn.functional.softplus(torch.tensor(-1.0)) + 1
    torch.testing.assert_close(value, wanted)
    loss.backend = "auto"
