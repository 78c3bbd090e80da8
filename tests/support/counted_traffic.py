"""Count the bytes that a rank sends, by wrapping the calls of torch.distributed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from itm_kernels.distributed import _side
from itm_kernels.distributed._traffic import Sizes
from spread_losses import Spread, loss_of, own_slices

# Images and texts of two ranks; texts None: as images, without ids.
SPREADS = {
    "equal": ((4, 4), None),
    "unequal": ((5, 2), None),
    "empty": ((0, 6), None),
    "ids": ((3, 2), (4, 6)),
}


def sizes(spread: Spread) -> Sizes:
    """Return the sizes of a batch, as formulas take them."""
    texts = spread.texts or spread.images
    reduction = dict(spread.options).get("reduction")
    return Sizes(
        len(spread.images),
        max(spread.images),
        max(texts),
        sum(spread.images),
        spread.D,
        spread.dtype.itemsize,
        spread.ids,
        reduction != "none",
        sum(texts),
    )


class Counter:
    """Bytes sent by this rank so far, as `itm_kernels.distributed._traffic` counts them."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, 0.0

    def take(self) -> float:
        """Return the bytes since the last call."""
        sent, self.sent = self.sent, 0.0
        return sent


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def counting(size: int, rank: int) -> Iterator[Counter]:
    """Count what is sent; other collectives than the known ones raise."""
    counter, W = Counter(size), size

    def gather(found: Tensor, own: Tensor, **options: Any) -> Any:
        counter.sent += (W - 1) * _bytes(own)
        return kept[_side, "_all_gather"](found, own, **options)

    def scatter(found: Tensor, rows: Tensor, **options: Any) -> Any:
        counter.sent += (W - 1) * _bytes(found)
        return kept[_side, "_reduce_scatter"](found, rows, **options)

    def reduce(values: Tensor, *arguments: Any, **options: Any) -> Any:
        counter.sent += 2 * (W - 1) / W * _bytes(values)
        return kept[dist, "all_reduce"](values, *arguments, **options)

    def batch(operations: list[dist.P2POp]) -> Any:
        counter.sent += sum(_bytes(p.tensor) for p in operations if p.op is dist.isend)
        return kept[dist, "batch_isend_irecv"](operations)

    def exchange(
        found: Tensor,
        rows: Tensor,
        received: list[int] | None = None,
        sent: list[int] | None = None,
        **options: Any,
    ) -> Any:
        own = rows.shape[0] // W if sent is None else sent[rank]
        counter.sent += _bytes(rows) - _bytes(rows[:own])
        return kept[dist, "all_to_all_single"](found, rows, received, sent, **options)

    def broadcast(values: Tensor, *arguments: Any, **options: Any) -> Any:
        counter.sent += _bytes(values)
        return kept[dist, "broadcast"](values, *arguments, **options)

    def unknown(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective that is not counted")

    wrapped: dict[tuple[Any, str], Any] = {
        (_side, "_all_gather"): gather,
        (_side, "_reduce_scatter"): scatter,
        (dist, "all_reduce"): reduce,
        (dist, "batch_isend_irecv"): batch,
        (dist, "all_to_all_single"): exchange,
        (dist, "broadcast"): broadcast,
    }
    for name in ("all_gather", "all_to_all", "gather", "reduce"):
        wrapped[dist, name] = unknown
    kept = {(module, name): getattr(module, name) for module, name in wrapped}
    try:
        for (module, name), function in wrapped.items():
            setattr(module, name, function)
        yield counter
    finally:
        for (module, name), function in kept.items():
            setattr(module, name, function)


def on_rank(group: Any, spread: Spread) -> tuple[float, float]:
    """Return the bytes that this rank sends in the forward and in the backward pass."""
    with counting(group.size(), group.rank()) as counter:
        value, _ = loss_of(spread, group, *own_slices(spread, group.rank()))
        sent = counter.take()
        value.sum().backward()
        return sent, counter.take()
