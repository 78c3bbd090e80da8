"""What the tests of CUDA's operators over all pairs of a small batch have in common."""

from collections.abc import Callable

import torch
from torch import Tensor

# One pair; less than a block; one more than a block of columns or a tile; D in one and several
# parts; five texts an image, in no order.
SIZES = [(1, 1, 1), (2, 2, 3), (33, 33, 96), (127, 127, 1), (9, 45, 333), (3, 15, 1000)]


def rows(N: int, D: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + N + D)
    return (torch.randn(N, D, generator=generator, dtype=torch.float64) / D**0.5).to(dtype)


def ids_of(N: int, M: int) -> dict[str, Tensor]:
    """Return ids for a batch that is not square."""
    if N == M:
        return {}
    texts = torch.arange(M) % N
    return {"image_ids": torch.arange(N), "text_ids": texts.flip(0) if M > 20 else texts}


def leaves(*sides: Tensor) -> list[Tensor]:
    return [side.detach().requires_grad_() for side in sides]


def gradients(found: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Return values and the gradients of both sides, in fp64."""
    total = x.new_zeros(())
    for t in found:
        pull = (torch.arange(len(t)) % 5 + 1).to(t.dtype)
        total = total + (t * pull)[t.isfinite()].sum()
    grads = torch.autograd.grad(total, (x, y)) if total.requires_grad else (x * 0, y * 0)
    return [t.detach().double() for t in (*found, *grads)]


def assert_as_good_as_eager(
    run: Callable[..., list[Tensor]], x: Tensor, y: Tensor, **ids: Tensor
) -> None:
    """Hold the error against fp64 below twice that of plain PyTorch in the same precision."""
    exact = run(x.double(), y.double(), "reference", **ids)
    eager = run(x, y, "reference", **ids)
    for wanted, theirs, found in zip(exact, eager, run(x, y, "native", **ids), strict=True):
        finite = wanted.isfinite()
        assert torch.equal(wanted[~finite], found[~finite])
        if not finite.any():
            continue
        wanted, theirs, found = wanted[finite], theirs[finite], found[finite]
        allowed = 2 * (theirs - wanted).abs().max()
        allowed += 8 * torch.finfo(torch.float32).eps * wanted.abs().max()
        assert (found - wanted).abs().max() <= allowed


def layouts() -> list[tuple[Tensor, Tensor]]:
    """Return sides that kernels do not take as they are: in steps, off alignment, repeated."""
    x = rows(40, 40)
    return [
        (x[::4, ::3], x[1::4, ::3]),
        (x.T[3:20], x.T[5:22]),
        (x[1:9, 1:14], x[9:17, 2:15]),
        (x[:7, :1].expand(7, 8), x[:7, 3:11]),
        (x[0].expand(5, 40), x[1:6]),
    ]


def not_finite(value: float, side: int, row: int) -> tuple[Tensor, Tensor]:
    """Return two sides of 35 rows with one number that is not finite."""
    sides = rows(35, 9), rows(35, 9, seed=1)
    sides[side][row, 8] = value
    return sides
