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

from itm_kernels._policies import rows_at_once
from itm_kernels.distributed._side import Side, wide_dtype


class Outputs(NamedTuple):
    """Outputs of a block of rows `[n, D]` and the tensors that a rank keeps, `[m, ...]`."""

    rows: tuple[Tensor, ...]  # [n] each: concatenated over blocks
    sums: tuple[Tensor, ...] = ()  # [m] each: added over blocks
    maxima: tuple[Tensor, ...] = ()  # [m] each: the maximum over blocks, of the first block with it
    # relative [m] and highest [m]: log-sum-exp over blocks, as the two addends of an operator
    logs: tuple[tuple[Tensor, Tensor], ...] = ()


# block [n, D], its slice of the global batch, and what the rank keeps
Function = Callable[..., Outputs]


def _exchange(tensor: Tensor, received: Tensor, side: Side) -> list[Any]:
    """Start to send a tensor to the next rank and to receive one of the same shape."""
    to, of = ((side.rank + step) % side.size for step in (1, -1))
    to, of = (dist.get_global_rank(side.group, rank) for rank in (to, of))
    operations = [
        dist.P2POp(dist.isend, tensor, to, side.group),
        dist.P2POp(dist.irecv, received, of, side.group),
    ]
    return dist.batch_isend_irecv(operations)


def _wait(requests: list[Any]) -> None:
    for request in requests:
        request.wait()


def blocks(rows: Tensor, side: Side) -> Iterator[tuple[int, Tensor]]:
    """Yield every rank and its rows, the own ones first; the next arrive meanwhile.

    A block is overwritten once the next one is requested.
    """
    held = rows.new_zeros(max(side.counts), *rows.shape[1:])
    held[: rows.shape[0]] = rows
    received = torch.empty_like(held)
    for step in range(side.size):
        rank = (side.rank - step) % side.size
        last = step == side.size - 1
        requests = [] if last else _exchange(held, received, side)
        yield rank, held[: side.counts[rank]]
        _wait(requests)
        held, received = received, held


def _log_add(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of two, relative to the higher of the highest logits."""
    (x, x_highest), (y, y_highest) = a, b
    own, other = (
        highest.masked_fill(relative == -torch.inf, -torch.inf) for relative, highest in (a, b)
    )
    most = torch.maximum(own, other)
    most = most.masked_fill(most.isinf(), 0)
    return torch.logaddexp(x + (x_highest - most), y + (y_highest - most)), most


def parts_of(
    block: Tensor, own: slice, at_once: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield parts of a block and their rows in the global batch; an empty block is one part."""
    most = rows_at_once(block, block.shape[0])
    most = most if at_once is None else min(most, at_once)
    for start in range(0, max(1, block.shape[0]), most):
        part = block[start : start + most]
        first = own.start + start
        yield slice(first, first + part.shape[0]), part


class _Merged:
    """Outputs of parts of the rows, merged in the order in which the parts arrive."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Tensor, ...]] = {}
        self.sums: tuple[Tensor, ...] = ()
        self.maxima: tuple[Tensor, ...] = ()
        self.chosen: tuple[Tensor, ...] = ()  # numbers of the parts with the maxima
        self.logs: tuple[tuple[Tensor, Tensor], ...] = ()

    def add(self, number: int, found: Outputs) -> None:
        """Add a part; its number is in the order of rows."""
        first = not self.rows
        self.rows[number] = found.rows
        if first:
            self.sums, self.maxima, self.logs = found[1:]
            self.chosen = tuple(torch.full_like(m, number, dtype=torch.int64) for m in self.maxima)
            return
        self.sums = tuple(a + b for a, b in zip(self.sums, found.sums, strict=True))
        self.logs = tuple(_log_add(a, b) for a, b in zip(self.logs, found.logs, strict=True))
        # NaN exceeds all; of equal scores that of the first rows counts.
        higher = [
            (new > old) | new.isnan() | ((new == old) & (number < by))
            for old, new, by in zip(self.maxima, found.maxima, self.chosen, strict=True)
        ]
        olds, news = self.maxima, found.maxima
        self.maxima = tuple(
            torch.where(h, new, old) for h, old, new in zip(higher, olds, news, strict=True)
        )
        self.chosen = tuple(
            by.masked_fill(h, number) for by, h in zip(self.chosen, higher, strict=True)
        )

    def of_rows(self) -> tuple[Tensor, ...]:
        """Return one value per row of the global batch."""
        ordered = [self.rows[number] for number in sorted(self.rows)]
        return tuple(torch.cat(parts) for parts in zip(*ordered, strict=True))


def _parts(
    rows: Tensor, side: Side, at_once: int | None
) -> Iterator[tuple[int, list[tuple[int, slice, Tensor]]]]:
    """Yield every rank's first row, and its parts with their numbers."""
    for rank, block in blocks(rows, side):
        own = side.slice_of(rank)
        found = enumerate(parts_of(block, own, at_once), rank << 32)
        yield own.start, [(number, part_own, part) for number, (part_own, part) in found]


class _Circulate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Function,
        side: Side,
        at_once: int | None,
        rows: Tensor,
        *kept: Tensor,
    ) -> Any:
        merged = _Merged()
        for _, parts in _parts(rows, side, at_once):
            for number, own, part in parts:
                merged.add(number, function(part, own, *kept))
        of_rows, maxima = merged.of_rows(), merged.maxima
        relative, highest = [r for r, _ in merged.logs], [h for _, h in merged.logs]
        ctx.function, ctx.side, ctx.at_once = function, side, at_once
        ctx.numbers = len(kept), len(of_rows), len(merged.sums), len(maxima), len(relative)
        ctx.save_for_backward(rows, *kept, *merged.chosen, *relative, *highest)
        ctx.mark_non_differentiable(*highest)
        return *of_rows, *merged.sums, *maxima, *relative, *highest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        side, (rows, *saved) = ctx.side, ctx.saved_tensors
        K, R, S, X, L = ctx.numbers
        kept, saved = saved[:K], saved[K:]
        chosen, relative, highest = saved[:X], saved[X : X + L], saved[X + L :]
        of_rows, of_sums, grads = grads[:R], grads[R : R + S], grads[R + S :]
        of_maxima, of_logs = grads[:X], grads[X : X + L]

        def of_outputs(number: int, own: slice, found: Outputs) -> list[tuple[Tensor, Tensor]]:
            """Return the outputs of a part with their gradients."""
            pairs = [(o, g[own]) for o, g in zip(found.rows, of_rows, strict=True)]
            pairs += zip(found.sums, of_sums, strict=True)
            for o, g, by in zip(found.maxima, of_maxima, chosen, strict=True):
                pairs.append((o, g.masked_fill(by != number, 0)))
            logs = zip(found.logs, of_logs, relative, highest, strict=True)
            for (o, high), g, total, most in logs:
                share = (o.detach() + (high - most) - total).exp()
                pairs.append((o, g * share.masked_fill(total == -torch.inf, 0)))
            return [(o, g) for o, g in pairs if o.requires_grad]

        wanted = ctx.needs_input_grad[4:]
        leaves = [t.detach().requires_grad_(w) for t, w in zip(kept, wanted, strict=True)]
        sums: list[Tensor | None] = [None] * K  # of gradients of half precision, in fp32
        home = rows.new_zeros(max(side.counts), *rows.shape[1:], dtype=wide_dtype(rows))
        received = torch.empty_like(home)
        requests: list[Any] = []
        for first, parts in _parts(rows, side, ctx.at_once):
            of_parts = []
            for number, own, part in parts:
                with torch.enable_grad():
                    block = part.detach().requires_grad_()
                    pairs = of_outputs(number, own, ctx.function(block, own, *leaves))
                    if pairs:
                        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
                of_parts.append((own, block.grad))
                for k, leaf in enumerate(leaves):
                    wide = wide_dtype(leaf)
                    if leaf.grad is not None and leaf.dtype != wide:
                        sums[k] = leaf.grad.to(wide) + (0 if sums[k] is None else sums[k])
                        leaf.grad = None
            _wait(requests)
            for own, grad in of_parts:
                if grad is not None:
                    home[own.start - first : own.stop - first] += grad
            requests = _exchange(home, received, side)
            home, received = received, home
        _wait(requests)
        grad_kept = [
            leaf.grad if total is None else total.to(leaf.dtype)
            for leaf, total in zip(leaves, sums, strict=True)
        ]
        return None, None, None, home[: rows.shape[0]].to(rows.dtype), *grad_kept


def circulate(
    function: Function, side: Side, rows: Tensor, *kept: Tensor, at_once: int | None = None
) -> Outputs:
    """Apply a function to the rows of every rank and merge its outputs.

    Args:
        function: of a block of rows `[n_k, D]`, its slice of the global batch, and `kept`; it must
            give outputs of the right sizes for a block without rows, and return the same again.
        side: the rows of all ranks.
        rows: `[n, D]`, this rank's.
        kept: tensors that stay on this rank.
        at_once: the most rows of a block that the function takes at once; `rows_at_once` may be
            less.

    Returns:
        `Outputs`, of which `rows` hold one value per row of the global batch, `[N]`.
    """
    sizes = [0] * 4
    found = _Circulate.apply(_counted(function, sizes), side, at_once, rows, *kept)
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
