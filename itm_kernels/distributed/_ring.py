"""A ring: the rows of one rank after another visit every rank, next to what each rank keeps.

In step t, a rank holds the rows of rank (own - t) mod W, computes with them, and meanwhile sends
them to the next rank and receives those of the one before. Memory is that of two blocks of rows.
The backward pass goes round once more, with the gradient of each block, which every rank adds to;
after W steps it is home. The order of additions is fixed.

The backward pass computes the outputs of a block again, which costs one product of scores more than
keeping all rows: five instead of four for a softmax loss.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from itm_kernels.distributed._side import Side


class Outputs(NamedTuple):
    """What a block of rows `[n, D]` gives with the tensors that a rank keeps, `[m, ...]`."""

    rows: tuple[Tensor, ...]  # [n] each: concatenated over blocks
    sums: tuple[Tensor, ...] = ()  # [m] each: added over blocks
    maxima: tuple[Tensor, ...] = ()  # [m] each: the maximum over blocks, of the first block with it
    # relative [m] and highest [m]: log-sum-exp over blocks, as the two addends of an operator
    logs: tuple[tuple[Tensor, Tensor], ...] = ()


# block [n, D], its slice of the global batch, and what the rank keeps
Function = Callable[..., Outputs]


def _exchange(tensor: Tensor, side: Side) -> tuple[Tensor, list[Any]]:
    """Start to send a tensor to the next rank and to receive one of the same shape."""
    received = torch.empty_like(tensor)
    to, of = ((side.rank + step) % side.size for step in (1, -1))
    to, of = (dist.get_global_rank(side.group, rank) for rank in (to, of))
    operations = [
        dist.P2POp(dist.isend, tensor, to, side.group),
        dist.P2POp(dist.irecv, received, of, side.group),
    ]
    return received, dist.batch_isend_irecv(operations)


def _wait(requests: list[Any]) -> None:
    for request in requests:
        request.wait()


def blocks(rows: Tensor, side: Side) -> Iterator[tuple[int, Tensor]]:
    """Yield every rank and its rows, the own ones first; the next arrive meanwhile."""
    padded = rows.new_zeros(max(side.counts), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    for step in range(side.size):
        rank = (side.rank - step) % side.size
        last = step == side.size - 1
        received, requests = (padded, []) if last else _exchange(padded, side)
        yield rank, padded[: side.counts[rank]]
        _wait(requests)
        padded = received


def slice_of(side: Side, rank: int) -> slice:
    """Return the rows of a rank in the global batch."""
    first = sum(side.counts[:rank])
    return slice(first, first + side.counts[rank])


def _log_add(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of two, relative to the higher of the highest logits."""
    (x, x_highest), (y, y_highest) = a, b
    own, other = (
        highest.masked_fill(relative == -torch.inf, -torch.inf) for relative, highest in (a, b)
    )
    most = torch.maximum(own, other)
    most = most.masked_fill(most.isinf(), 0)
    return torch.logaddexp(x + (x_highest - most), y + (y_highest - most)), most


class _Circulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, side: Side, rows: Tensor, *kept: Tensor) -> Any:
        parts: dict[int, Outputs] = {}
        merged: Outputs | None = None
        chosen: tuple[Tensor, ...] = ()
        for rank, block in blocks(rows, side):
            found = function(block, slice_of(side, rank), *kept)
            parts[rank] = found._replace(sums=(), maxima=(), logs=())
            if merged is None:
                merged = found
                chosen = tuple(torch.full_like(m, rank, dtype=torch.int64) for m in found.maxima)
                continue
            pairs = list(zip(merged.maxima, found.maxima, strict=True))
            # NaN exceeds all; of equal scores the lowest rank has the lowest index.
            higher = [
                (new > old) | new.isnan() | ((new == old) & (rank < by))
                for (old, new), by in zip(pairs, chosen, strict=True)
            ]
            chosen = tuple(by.masked_fill(h, rank) for by, h in zip(chosen, higher, strict=True))
            merged = Outputs(
                (),
                tuple(a + b for a, b in zip(merged.sums, found.sums, strict=True)),
                tuple(
                    torch.where(h, new, old) for h, (old, new) in zip(higher, pairs, strict=True)
                ),
                tuple(_log_add(a, b) for a, b in zip(merged.logs, found.logs, strict=True)),
            )
        assert merged is not None
        of_rows = tuple(
            torch.cat(part) for part in zip(*(parts[r].rows for r in range(side.size)), strict=True)
        )
        highest = [h for _, h in merged.logs]
        ctx.function, ctx.side = function, side
        ctx.numbers = len(of_rows), len(merged.sums), len(merged.maxima), len(merged.logs)
        relative = [r for r, _ in merged.logs]
        ctx.save_for_backward(rows, *kept, *chosen, *relative, *highest)
        ctx.kept = len(kept)
        ctx.mark_non_differentiable(*highest)
        return *of_rows, *merged.sums, *merged.maxima, *relative, *highest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        side, saved = ctx.side, list(ctx.saved_tensors)
        rows, kept, saved = saved[0], saved[1 : 1 + ctx.kept], saved[1 + ctx.kept :]
        R, S, X, L = ctx.numbers
        chosen, relative, highest = saved[:X], saved[X : X + L], saved[X + L :]
        wanted = ctx.needs_input_grad[3:]
        of_kept: list[Tensor | None] = [
            torch.zeros_like(t, dtype=_wide(t)) if w else None
            for t, w in zip(kept, wanted, strict=True)
        ]
        travelling = rows.new_zeros(max(side.counts), *rows.shape[1:], dtype=_wide(rows))
        requests: list[Any] = []
        for rank, given in blocks(rows, side):
            own = slice_of(side, rank)
            with torch.enable_grad():
                block = given.detach().requires_grad_()
                inputs = [t.detach().requires_grad_(w) for t, w in zip(kept, wanted, strict=True)]
                found = ctx.function(block, own, *inputs)
            of_outputs = [g[own] for g in grads[:R]] + list(grads[R : R + S])
            of_outputs += [
                g.masked_fill(by != rank, 0)
                for g, by in zip(grads[R + S : R + S + X], chosen, strict=True)
            ]
            for g, (part, high), total, most in zip(
                grads[R + S + X :], found.logs, relative, highest, strict=False
            ):
                share = (part.detach() + (high - most) - total).exp()
                of_outputs.append(g * share.masked_fill(total == -torch.inf, 0))
            outputs = [*found.rows, *found.sums, *found.maxima, *(part for part, _ in found.logs)]
            ends = [(o, g) for o, g in zip(outputs, of_outputs, strict=True) if o.requires_grad]
            needed = [block, *(t for t in inputs if t.requires_grad)]
            of_inputs = iter(
                torch.autograd.grad(
                    [o for o, _ in ends], needed, [g for _, g in ends], materialize_grads=True
                )
                if ends
                else [torch.zeros_like(t) for t in needed]
            )
            of_block = next(of_inputs)
            for total_of in of_kept:
                if total_of is not None:
                    total_of += next(of_inputs)
            _wait(requests)
            travelling[: of_block.shape[0]] += of_block
            travelling, requests = _exchange(travelling, side)
        _wait(requests)
        grad_rows = travelling[: rows.shape[0]].to(rows.dtype)
        grad_kept = (
            None if g is None else g.to(t.dtype) for g, t in zip(of_kept, kept, strict=True)
        )
        return None, None, grad_rows, *grad_kept


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def circulate(function: Function, side: Side, rows: Tensor, *kept: Tensor) -> Outputs:
    """Apply a function to the rows of every rank and merge its outputs.

    Args:
        function: of a block of rows `[n_k, D]`, its slice of the global batch, and `kept`; it must
            give outputs of the right sizes for a block without rows, and return the same again.
        side: the rows of all ranks.
        rows: `[n, D]`, this rank's.
        kept: tensors that stay on this rank.

    Returns:
        `Outputs`, of which `rows` hold one value per row of the global batch, `[N]`.
    """
    sizes = [0] * 4
    found = _Circulate.apply(_counted(function, sizes), side, rows, *kept)
    R, S, X, L = sizes
    relative, highest = found[R + S + X : R + S + X + L], found[R + S + X + L :]
    logs = tuple(zip(relative, highest, strict=True))
    return Outputs(found[:R], found[R : R + S], found[R + S : R + S + X], logs)


def _counted(function: Function, sizes: list[int]) -> Function:
    """Note how many outputs of each kind a function has."""

    def run(*arguments: Any) -> Outputs:
        found = function(*arguments)
        sizes[:] = [len(outputs) for outputs in found]
        return found

    return run
