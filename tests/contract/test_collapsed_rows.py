"""Softmax losses of collapsed rows: error against fp64 <= 2 x that of the originals.

Equal rows have equal logits, in the thousands or not: the original subtracts them exactly and
returns log N. A positive's logit computed apart from the others, or a log-sum-exp as one number,
is off by the last digit of the logits: 1e-4 of a loss at logits of 3,000.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from itm_kernels import functional
from itm_kernels._positives import Pairs
from itm_kernels.losses._contrast import Embeddings, mean_cross_entropy

N, D = 40, 33
EPS = torch.finfo(torch.float32).eps


def both_ways(logits: Tensor) -> Tensor:
    own = torch.arange(N)
    return sum(cross_entropy(one, own, reduction="none") for one in (logits, logits.T))


def views(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Return NT-Xent over two views."""
    others = ~torch.eye(N, dtype=torch.bool)
    sides = [
        torch.cat([scale * a @ b.T, (scale * a @ a.T)[others].view(N, N - 1)], 1)
        for a, b in ((x, y), (y, x))
    ]
    return sum(cross_entropy(logits, torch.arange(N)) for logits in sides) / 2


Loss = Callable[..., Tensor]
# Ours, of rows and a backend, and the original in eager PyTorch.
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "info_nce": (
        lambda x, y, b: functional.info_nce_loss(
            x, y, logit_scale=100.0, reduction="none", backend=b
        ),
        lambda x, y: both_ways(100 * normalize(x) @ normalize(y).T) / 2,
    ),
    "logits of 3,000": (  # open_clip's ClipLoss, which takes features as they come
        lambda x, y, b: mean_cross_entropy(
            *(Embeddings(side, b, cosine=False) for side in (x, y)),
            torch.tensor(100.0).to(x),
            Pairs(None, None, None),
        ),
        lambda x, y: both_ways(100 * x @ y.T) / 2,
    ),
    "info_cmr": (
        lambda x, y, b: functional.info_cmr_loss(
            x, y, temperature=0.01, num_clusters=0, num_noise=0, reduction="none", backend=b
        ),
        lambda x, y: both_ways(normalize(x) @ normalize(y).T / 0.01),
    ),
    "fusion": (
        lambda x, y, b: functional.fusion_contrastive_loss(
            torch.stack([x, y]), logit_scale=100.0, backend=b
        ),
        lambda x, y: views(normalize(x), normalize(y), 100.0),
    ),
    "alignment": (
        lambda x, y, b: functional.multi_view_alignment_loss(
            x[None], y[None], logit_scale=1000.0, backend=b
        ),
        lambda x, y: both_ways(1000 * normalize(x) @ normalize(y).T).mean() / 2,
    ),
}


def rows(spread: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    apart = torch.randn(2, N, D, generator=generator)
    apart[1, 0] = apart[0, 0]  # one pair has equal logits even if rows differ
    return list(torch.randn(D, generator=generator) + spread * apart)


# The error of a mean over pairs depends on chance, unless all pairs are equal.
CASES = [(name, 0.0) for name in LOSSES]
CASES += [(name, spread) for name in ("info_nce", "logits of 3,000") for spread in (1e-4, 1e-2)]


@pytest.mark.parametrize(("name", "spread"), CASES)
def test_collapsed_rows_err_no_more_than_the_originals(
    name: str, spread: float, backend: str
) -> None:
    ours, original = LOSSES[name]
    x, y = rows(spread)
    exact, eager, found = (
        t.double() for t in (original(x.double(), y.double()), original(x, y), ours(x, y, backend))
    )
    allowed = 2 * (eager - exact).abs().max() + 4 * EPS * exact.abs().max()
    assert (found - exact).abs().max() <= allowed


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_collapsed_rows(name: str, backend: str) -> None:
    ours, original = LOSSES[name]
    x, y = rows(1e-2)

    def gradients(loss: Loss, *sides: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in sides]
        found = loss(*leaves)
        upstream = torch.linspace(0.5, 1.5, found.numel()).to(found).view(found.shape)
        return [grad.double() for grad in torch.autograd.grad(found, leaves, upstream)]

    exact = gradients(original, x.double(), y.double())
    eager = gradients(original, x, y)
    found = gradients(lambda *sides: ours(*sides, backend), x, y)
    for wanted, theirs, own in zip(exact, eager, found, strict=True):
        allowed = 2 * (theirs - wanted).abs().max() + 4 * EPS * wanted.abs().max()
        assert (own - wanted).abs().max() <= allowed
