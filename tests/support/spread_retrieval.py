"""Retrieval over ranks: what a rank runs."""

import warnings
from typing import Any, NamedTuple

from torch import Tensor

from itm_kernels.ops import _ranks
from itm_kernels.retrieval import RetrievalReport, evaluate, evaluation


class Found(NamedTuple):
    """What a rank returns, how many scores it computes, and its warnings."""

    report: RetrievalReport
    scores: int
    warnings: list[str]


def evaluate_on_rank(
    group: Any,
    rows: tuple[Tensor, Tensor],  # [N, D], [M, D]
    ids: tuple[Tensor, Tensor] | None,  # [N], [M]
    counts: tuple[tuple[int, ...], tuple[int, ...]],  # of images and texts on every rank
    options: dict[str, Any],
) -> Found:
    """Evaluate this rank's rows; without a group, all rows."""
    own = [slice(None)] * 2
    if group is not None:
        r = group.rank()
        own = [slice(sum(c[:r]), sum(c[: r + 1])) for c in counts]
        options = {**options, "group": group}
    image, text = (x[o] for x, o in zip(rows, own, strict=True))
    if ids is not None:
        names = ("image_ids", "text_ids")
        options = options | {n: i[o] for n, i, o in zip(names, ids, own, strict=True)}
    scores = 0

    def counted(queries: Tensor, gallery: Tensor, *others: Any) -> _ranks.Ranks:
        nonlocal scores
        scores += len(queries) * len(gallery)
        return _ranks.fused_ranks(queries, gallery, *others)

    evaluation.fused_ranks = counted
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            report = evaluate(image, text, **options)
    finally:
        evaluation.fused_ranks = _ranks.fused_ranks
    return Found(report, scores, [str(w.message) for w in told])
