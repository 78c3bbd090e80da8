"""Retrieval over ranks: what a rank runs."""

import warnings
from typing import Any, NamedTuple

from torch import Tensor

from itm_kernels.ops import _ranks
from itm_kernels.retrieval import RetrievalReport, evaluate, evaluate_scores, evaluation


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


class Shared(NamedTuple):
    """What a rank returns, the blocks it computes and is told of, and its warnings."""

    report: RetrievalReport
    blocks: list[tuple[int, int]]
    progress: list[tuple[int, int]]
    warnings: list[str]


def evaluate_scores_on_rank(
    group: Any,
    scores: Tensor,  # [N, M]
    options: list[dict[str, Any]],  # of every rank
    failing: tuple[int, int] | None = None,  # a rank, and how many blocks it computes before
) -> Shared:
    """Evaluate this rank's share of the blocks; without a group, all blocks."""
    rank = 0 if group is None else group.rank()
    blocks: list[tuple[int, int]] = []
    progress: list[tuple[int, int]] = []

    def score(i: slice, j: slice) -> Tensor:
        if failing is not None and failing == (rank, len(blocks)):
            raise OverflowError("out of memory")
        blocks.append((i.start, j.start))
        return scores[i, j]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = evaluate_scores(
            score,
            *scores.shape,
            **options[rank],
            group=group,
            progress=lambda *counts: progress.append(counts),
        )
    return Shared(report, blocks, progress, [str(w.message) for w in told])
