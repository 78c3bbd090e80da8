"""Ranks, recalls, median ranks and R-sum of two-way retrieval."""

from __future__ import annotations

import numpy as np

from oracles.pairing import Array, Ids


def ranks(scores: Array, query_ids: Ids, candidate_ids: Ids) -> list[int]:
    """1 + the number of candidates that score above the query's best positive."""
    assert query_ids is not None and candidate_ids is not None
    found = []
    for i in range(scores.shape[0]):
        matching = [j for j in range(scores.shape[1]) if candidate_ids[j] == query_ids[i]]
        best = max(scores[i, j] for j in matching)
        found.append(1 + sum(1 for j in range(scores.shape[1]) if scores[i, j] > best))
    return found


def recall_report(
    scores: Array, image_ids: Ids, text_ids: Ids, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, object]:
    """Recalls in percent and median ranks of both directions, and their R-sum."""
    of_images = ranks(scores, image_ids, text_ids)
    of_texts = ranks(scores.T, text_ids, image_ids)

    def recalls(found: list[int]) -> dict[int, float]:
        return {k: 100.0 * sum(1 for rank in found if rank <= k) / len(found) for k in ks}

    i2t, t2i = recalls(of_images), recalls(of_texts)
    return {
        "i2t": i2t,
        "t2i": t2i,
        "i2t_median_rank": float(np.median(of_images)),
        "t2i_median_rank": float(np.median(of_texts)),
        "rsum": sum(i2t.values()) + sum(t2i.values()),
    }
