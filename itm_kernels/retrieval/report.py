"""The report of an evaluation: metrics computed from ranks, and their table."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from itm_kernels._warnings import warn
from itm_kernels.ops._ranks import Ranks

_ORDERS_AT_ONCE = 1 << 20
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


@dataclass(frozen=True)
class RetrievalReport:
    """The metrics that `evaluate` returns; ``str()`` formats them as a table."""

    i2t: dict[int, float]  # k -> percentage of images with one of their texts in the top k
    t2i: dict[int, float]  # k -> percentage of texts with one of their images in the top k
    i2t_median_rank: float  # 1 is best
    t2i_median_rank: float
    rsum: float  # sum of all recalls of both directions
    i2t_mean_rank: float
    t2i_mean_rank: float
    i2t_mrr: float  # mean of 1 / rank, in (0, 1]
    t2i_mrr: float
    i2t_ties: int  # images whose best text ties with texts of other images
    t2i_ties: int  # texts whose best image ties with images of other texts

    def as_dict(self) -> dict[str, float]:
        """Return all metrics under flat names for a logger: ``i2t_r1``, ``i2t_mrr``, ``rsum``.

        Recalls are percentages, with their k in the name.
        """
        found: dict[str, float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                found |= {f"{field.name}_r{k}": recall for k, recall in value.items()}
            else:
                found[field.name] = value
        return found

    def __str__(self) -> str:
        """Return a table with one line per direction, and R-sum with the number of ties."""
        heading = "".join(f"{f'R@{k}':>8}" for k in self.i2t)
        lines = [f"{'':<14}{heading}{'median rank':>13}{'mean rank':>11}{'MRR':>8}"]
        for name, title in _DIRECTIONS.items():
            recalls = "".join(f"{recall:>8.1f}" for recall in getattr(self, name).values())
            median, mean, mrr = (
                getattr(self, f"{name}_{figure}") for figure in ("median_rank", "mean_rank", "mrr")
            )
            lines.append(f"{title:<14}{recalls}{median:>13.1f}{mean:>11.1f}{mrr:>8.3f}")
        lines.append(f"R-sum {self.rsum:.1f}")
        if self.i2t_ties or self.t2i_ties:
            lines[-1] += f"; {self.i2t_ties} images and {self.t2i_ties} texts tie with a negative"
        return "\n".join(lines)


def report(image: Ranks, text: Ranks, ks: Sequence[int]) -> RetrievalReport:
    """Compute the metrics from ranks of images among texts and of texts among images."""
    figures: dict[str, dict[int, float] | float] = {}
    for name, ranks in (("i2t", image), ("t2i", text)):
        recalls, mrr = _recalls_and_mrr(ranks, ks)
        ordered = ranks.rank.sort().values
        Q = len(ordered)
        figures |= {
            name: recalls,
            f"{name}_median_rank": (float(ordered[(Q - 1) // 2]) + float(ordered[Q // 2])) / 2,
            f"{name}_mean_rank": float(ordered.mean()),
            f"{name}_mrr": mrr,
            f"{name}_ties": int((ranks.ties > 0).sum()),
        }
        figures["rsum"] = figures.get("rsum", 0.0) + sum(recalls.values())  # type: ignore[operator]
    return RetrievalReport(**figures)  # type: ignore[arg-type]


def mean(reports: Sequence[RetrievalReport]) -> RetrievalReport:
    """Return the mean of every metric over folds, and the sum of the ties."""
    figures: dict[str, dict[int, float] | float] = {}
    for field in fields(RetrievalReport):
        values = [getattr(fold, field.name) for fold in reports]
        if isinstance(values[0], dict):
            figures[field.name] = {
                k: sum(recalls[k] for recalls in values) / len(values) for k in values[0]
            }
        else:
            total = sum(values)
            figures[field.name] = total if field.name.endswith("_ties") else total / len(values)
    return RetrievalReport(**figures)  # type: ignore[arg-type]


def warn_of_large_ks(
    function: str, ks: Sequence[int], ranked: Sequence[tuple[Ranks, Ranks]]
) -> None:
    """Warn of cutoffs that exceed the number of candidates."""
    fewest = min(len(ranks.rank) for both in ranked for ranks in both)
    large = [k for k in ks if k > fewest]
    if large:
        warn(
            f"{function}: ks holds {', '.join(map(str, large))}, but one side has only "
            f"{fewest} candidates, so recall is always 100 %; leave out larger k",
        )


def warn_of_scores(function: str, ranked: Sequence[tuple[Ranks, Ranks]], remedy: str) -> None:
    """Warn of queries without a finite score among their positives."""
    lost = sum(int((ranks.positives == 0).sum()) for both in ranked for ranks in both)
    if lost:
        warn(
            f"{function}: {lost} queries have no finite score among their positives and rank "
            f"last; {remedy}",
        )


def _recalls_and_mrr(ranks: Ranks, ks: Sequence[int]) -> tuple[dict[int, float], float]:
    """Return R@k in percent and MRR, as expectations over all orders of the ties."""
    Q = len(ranks.rank)
    tied = ranks.ties > 0
    certain = 1 + ranks.above[~tied].sort().values  # sums do not depend on row order
    hits = {k: float((certain <= k).sum()) for k in ks}
    reciprocal = float((1 / certain.double()).sum())
    if tied.any():
        standing = torch.stack([counts[tied] for counts in ranks[1:]], 1)
        # Equal counts are computed once: if all rows are equal, there is one kind of query.
        kinds, number = standing.unique(dim=0, return_counts=True)
        rows = max(1, _ORDERS_AT_ONCE // (1 + int(kinds[:, 1].max())))
        for some, queries in zip(kinds.split(rows), number.split(rows), strict=True):
            chances, expected = _over_all_orders(some, ks)
            reciprocal += float((queries * expected).sum())
            for k, chance in chances.items():
                hits[k] += float((queries * chance).sum())
    return {k: 100.0 * hits[k] / Q for k in ks}, reciprocal / Q


def _over_all_orders(
    standing: Tensor,  # [K, 3] above, ties, positives
    ks: Sequence[int],
) -> tuple[dict[int, Tensor], Tensor]:  # k -> [K], [K]
    """Return the probability of a rank <= k, and the expectation of 1 / rank.

    The tied candidates are drawn one by one until the first positive.
    """
    above, ties, positives = standing[:, :, None].unbind(1)  # [K, 1]
    drawn = torch.arange(int(ties.max()) + 1, device=ties.device)
    left = (ties + positives - drawn).clamp_min(1).double()
    # probability that the first drawn + 1 candidates are all negatives
    missed = ((ties - drawn).clamp_min(0) / left).cumprod(1)
    before = torch.cat((torch.ones_like(missed[:, :1]), missed[:, :-1]), 1)
    expected = (before * positives / left / (above + drawn + 1)).sum(1)
    chances = {}
    for k in ks:
        last = (k - above - 1).clamp(0, len(drawn) - 1)
        chances[k] = torch.where(k > above, 1 - missed.gather(1, last), 0)[:, 0]
    return chances, expected
