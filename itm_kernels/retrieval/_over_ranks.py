"""Retrieval over the ranks of a process group: queries, or blocks of scores, are shared."""

from collections.abc import Callable

import torch
from torch import Tensor

from itm_kernels._public import UnnamedValueError
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._side import Side
from itm_kernels.ops._ranks import Ranks
from itm_kernels.retrieval._inputs import Rows
from itm_kernels.retrieval._score_blocks import Ranking

Function = Callable[[Rows, Rows], Ranks]  # of queries and gallery


def check_layout(agreement: Agreement) -> None:
    """Check that without ids, every rank has the same number of texts per image."""
    image, text = agreement.sides["image"], agreement.sides["text"]
    for rank, (n, m) in enumerate(zip(image.counts, text.counts, strict=True)):
        if n * text.total != m * image.total:
            raise UnnamedValueError(
                f"rank {rank} has {n} images and {m} texts, all ranks {image.total} and "
                f"{text.total}; without ids all ranks need the same number of texts per image: "
                "pass image_ids and text_ids"
            )


def gather(
    agreement: Agreement,
    image: Tensor,  # [n, D]
    text: Tensor,  # [m, D]
    image_ids: Tensor | None,  # [n]
    text_ids: Tensor | None,  # [m]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the rows and ids of all ranks."""
    v, c = agreement.sides["image"], agreement.sides["text"]

    def ids_of(side: Side, ids: Tensor | None) -> Tensor | None:
        return None if ids is None else side.gather(ids.to(image.device, torch.int64))

    return v.gather(image), c.gather(text), ids_of(v, image_ids), ids_of(c, text_ids)


def ranked_in_shares(function: Function, agreement: Agreement) -> Function:
    """Return a function that ranks an equal share of the queries on every rank of the group."""
    W = agreement.size

    def run(queries: Rows, gallery: Rows) -> Ranks:
        Q = len(queries[0])
        ends = [Q * r // W for r in range(W + 1)]
        counts = tuple(end - start for start, end in zip(ends[:-1], ends[1:], strict=True))
        side = Side(agreement.group, agreement.rank, counts)
        rows, ids, keys = queries
        found = rows.new_empty(0, 4, dtype=torch.float64)  # exact for counts below 2^53
        if counts[side.rank]:
            own = rows[side.own], ids[side.own], keys[side.own]
            found = torch.stack([numbers.double() for numbers in function(own, gallery)], 1)
        rank, *numbers = side.gather(found).unbind(1)
        above, ties, positives = (number.long() for number in numbers)
        return Ranks(rank, above, ties, positives)

    return run


def rank_blocks(
    function: str,
    agreement: Agreement,
    start: Callable[[], tuple[Ranking, dict[str, object]]],
) -> Ranking:
    """Rank all queries, every rank from its share of the blocks.

    Args:
        function: the public function, for messages.
        agreement: of the group.
        start: checks this rank's arguments; returns the ranking and what must be equal on all
            ranks.
    """
    with agreement:
        ranking, options = start()
        ranking.find_best()
        agreement.describe(function, {"scores": ranking.best[:, None]}, None, **options)
    side = agreement.sides["scores"]
    best = side.all_reduce(ranking.best.double(), "MAX")  # gloo has no maximum of every dtype
    ranking.bound_by(best.to(ranking.best.dtype))
    # A score function may fail on one rank; the others must not wait for it.
    with Agreement(agreement.group, "sum", "gather") as again:
        ranking.count()
        again.describe(function, {"scores": ranking.best[:, None]})
    ranking.counts = side.all_reduce(ranking.counts)
    return ranking
