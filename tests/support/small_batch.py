"""Inputs and outcomes for tests of CUDA's operators over all pairs of a small batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from itm_kernels import _positives, functional, ops
from itm_kernels.ops._sigmoid import fused_sigmoid

Loss = Callable[..., nn.Module]

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


def gradients(found: list[Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return values and the gradients of all inputs, in fp64."""
    total = inputs[0].new_zeros(())
    for t in found:
        upstream = (torch.arange(len(t)) % 5 + 1).to(t.dtype)
        total = total + (t * upstream)[t.isfinite()].sum()
    grads = torch.autograd.grad(total, inputs) if total.requires_grad else [x * 0 for x in inputs]
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
    """Return sides that kernels must copy: strided, unaligned, expanded."""
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


def max_hinges(x: Tensor, y: Tensor, backend: str, **options: Any) -> list[Tensor]:
    x, y = leaves(x, y)
    loss = functional.max_of_hinges_loss(x, y, backend=backend, reduction="none", **options)
    return gradients([loss], x, y)


def hardest(x: Tensor, y: Tensor, backend: str, **ids: Tensor) -> list[Tensor]:
    x, y = leaves(x, y)
    found = ops.hardest_negatives(x, y, backend=backend, **ids)
    scores = [found.positive, found.text_score, found.image_score]
    indices = found.text_index.double(), found.image_index.double()
    return [*indices, *gradients(scores, x, y)]


def semihard(x: Tensor, y: Tensor, backend: str, **ids: Tensor) -> list[Tensor]:
    return max_hinges(x, y, backend, mining="semihard", margin=3.0, **ids)


def sum_hinges(x: Tensor, y: Tensor, backend: str, **ids: Tensor) -> list[Tensor]:
    x, y = leaves(x, y)
    # A margin near the scores' spread: some hinges are active, some are not.
    loss = functional.sum_of_hinges_loss(x, y, margin=0.5, reduction="none", backend=backend, **ids)
    return gradients([loss], x, y)


def exp_sums(x: Tensor, y: Tensor, backend: str, **ids: Tensor) -> list[Tensor]:
    scale = torch.tensor(3.0, dtype=torch.promote_types(x.dtype, torch.float32))
    x, y, scale = leaves(x, y, scale)
    ids = dict(zip(("x_ids", "y_ids"), ids.values(), strict=False))
    found = ops.log_sum_exp(x, y, scale, backend=backend, **ids)
    return gradients(list(found), x, y, scale)


def sigmoids(x: Tensor, y: Tensor, backend: str, **ids: Tensor) -> list[Tensor]:
    like = torch.promote_types(x.dtype, torch.float32)
    x, y, *scalars = leaves(x, y, torch.tensor(3.0, dtype=like), torch.tensor(-2.0, dtype=like))
    pairs = _positives.resolve(x, y, ids.get("image_ids"), ids.get("text_ids"))
    loss = fused_sigmoid(x, y, *scalars, pairs, backend)
    return gradients([loss], x, y, *scalars)


HARDEST = max_hinges, semihard, hardest
SUMS = sum_hinges, exp_sums, sigmoids


# -- whole losses as one operator ---------------------------------------------------------------


def outcome(loss: Loss, x: Tensor, y: Tensor, backend: str, **ids: Tensor) -> list[Tensor]:
    """Return a loss, times 3, and the gradients of rows and parameters, in fp64."""
    module = loss(backend=backend).to(torch.promote_types(x.dtype, torch.float32))
    inputs = [*leaves(x, y), *module.parameters()]
    value = 3 * module(*inputs[:2], **ids)
    return [t.detach().double() for t in (value, *torch.autograd.grad(value, inputs))]


def assert_is_the_reference(loss: Loss, x: Tensor, y: Tensor, **ids: Tensor) -> None:
    found = outcome(loss, x, y, "native", **ids)
    wanted = outcome(loss, x.contiguous(), y.contiguous(), "reference", **ids)
    torch.testing.assert_close(found, wanted, equal_nan=True)
