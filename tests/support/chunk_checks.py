"""Models and comparisons for checks of `itm_kernels.chunked` on two processes."""

import copy
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from itm_kernels import chunked

CHECKS: dict[str, Callable[[], None]] = {}
ROWS = [slice(0, 7), slice(7, 12)]  # of each rank: unequal, with unequal last chunks


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


class Towers(nn.Module):
    """An image and a text encoder behind one forward method."""

    def __init__(self, *, unused: bool = False) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9).eval(), nn.Linear(9, 5))
        self.text = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5))
        self.unused = nn.Linear(3, 3) if unused else None

    def forward(self, image: Tensor | None = None, text: Tensor | None = None):
        if image is None:
            return self.text(text)
        if text is None:
            return self.image(image)
        return {"image": self.image(image), "text": [self.text(text)]}


class InChunks(nn.Module):
    """A model that calls chunked on its own encoders."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return (
            chunked(self.towers.image, image, chunk_size=2),
            chunked(self.towers.text, text, chunk_size=3),
        )


def problem(**options: bool) -> tuple[Towers, Towers, Tensor, Tensor]:
    """Return a model, an equal one, and a batch, the same on all ranks."""
    torch.manual_seed(0)
    model = Towers(**options).double()
    return (
        model,
        copy.deepcopy(model),
        torch.randn(12, 6, dtype=torch.double),
        torch.randn(12, 4, dtype=torch.double),
    )


def loss(image: Tensor, text: Tensor) -> Tensor:
    """Return a loss that is a sum over rows: the mean over ranks is half of the batch's."""
    return (image * text).sum(1).tanh().sum()


def own(*tensors: Tensor) -> Iterator[Tensor]:
    return (tensor[ROWS[dist.get_rank()]] for tensor in tensors)


def expect_mean(model: nn.Module, whole: nn.Module, *, times: float = 1) -> None:
    """Check that gradients are the mean over ranks of those of the whole batch."""
    pairs = list(zip(model.parameters(), whole.parameters(), strict=True))
    assert any(p.grad is not None for p, _ in pairs)
    for p, q in pairs:
        if q.grad is None:
            assert p.grad is None or not p.grad.any()
            continue
        grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        torch.testing.assert_close(grad, times * q.grad / 2, rtol=1e-12, atol=1e-13)


def steps(
    model: nn.Module, ddp: nn.Module, whole: Towers, image: Tensor, text: Tensor, run
) -> None:
    """Compare the gradients of three steps: DDP rebuilds its buckets after the first."""
    for _ in range(3):
        ddp.zero_grad()
        whole.zero_grad()
        loss(*run(*own(image, text))).backward()
        loss(whole.image(image), whole.text(text)).backward()
        expect_mean(model, whole)
        with torch.no_grad():
            for p, q in zip(model.parameters(), whole.parameters(), strict=True):
                p.add_(torch.ones_like(p), alpha=0.01)
                q += 0.01
