"""Ranks, recalls, R-sum and average precision of two-way retrieval, ties in every order."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from oracles.pairing import Array, Ids


class Standing(NamedTuple):
    """Candidates above a query's best positive, and negatives and positives that tie with it."""

    above: int
    ties: int
    positives: int

    @property
    def rank(self) -> float:
        """The middle rank."""
        return 1 + self.above + self.ties / 2

    def chance(self, rank: int) -> float:
        """The fraction of the orders of ties in which the first positive has a rank."""
        drawn = rank - self.above  # the first positive is the candidate drawn last
        tied = self.ties + self.positives
        if not 1 <= drawn <= self.ties + 1:
            return 0.0
        return comb(tied - drawn, self.positives - 1) / comb(tied, self.positives)


def standings(scores: Array, query_ids: Ids, candidate_ids: Ids) -> list[Standing]:
    """The rank of the best positive of every query."""
    assert query_ids is not None and candidate_ids is not None
    found = []
    for i in range(scores.shape[0]):
        own = [j for j in range(scores.shape[1]) if candidate_ids[j] == query_ids[i]]
        others = [j for j in range(scores.shape[1]) if candidate_ids[j] != query_ids[i]]
        finite = [scores[i, j] for j in own if np.isfinite(scores[i, j])]
        if not finite:
            found.append(Standing(len(others), 0, 1))
            continue
        best = max(finite)
        above = sum(1 for j in range(scores.shape[1]) if scores[i, j] > best)
        tied = [sum(1 for j in side if scores[i, j] == best) for side in (others, own)]
        found.append(Standing(above, *tied))
    return found


def recall_report(
    scores: Array, image_ids: Ids, text_ids: Ids, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, object]:
    """Every figure of the report, recalls in percent."""
    report: dict[str, object] = {"rsum": 0.0}
    for name, found in (
        ("i2t", standings(scores, image_ids, text_ids)),
        ("t2i", standings(scores.T, text_ids, image_ids)),
    ):
        places = range(1, max(scores.shape) + 1)
        chances = np.array([[each.chance(rank) for rank in places] for each in found])
        recalls = {k: 100.0 * float(chances[:, :k].sum(1).mean()) for k in ks}
        report |= {
            name: recalls,
            f"{name}_median_rank": float(np.median([each.rank for each in found])),
            f"{name}_mean_rank": float(np.mean([each.rank for each in found])),
            f"{name}_mrr": float((chances / np.array(places)).sum(1).mean()),
            f"{name}_ties": sum(each.ties > 0 for each in found),
        }
        report["rsum"] += sum(recalls.values())
    return report


def average_precision(scores: Array, relevant: Array, at_r: bool = False) -> float:
    """One query's average precision, its mean over all orders of candidates that tie."""
    total, R = 0.0, int(relevant.sum())
    before = seen = 0  # candidates and relevant ones of higher scores
    for value in sorted(set(scores.tolist()), reverse=True):
        group = scores == value
        n, r = int(group.sum()), int(relevant[group].sum())
        orders = list(combinations(range(1, n + 1), r))  # places of the relevant ones
        for places in orders:
            for nth, place in enumerate(places, start=1):
                if not at_r or before + place <= R:
                    total += (seen + nth) / (before + place) / len(orders)
        before, seen = before + n, seen + r
    return total / R
