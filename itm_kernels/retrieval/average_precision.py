"""Mean average precision for classes of many items, computed in blocks of queries."""

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._autocast import outside_autocast
from itm_kernels._public import public
from itm_kernels.ops._ranks import row_keys
from itm_kernels.reference._precision import wide
from itm_kernels.retrieval._inputs import METRICS, check_finite, check_partners, for_metric

_FUNCTION = "mean_average_precision"
_SCORES_AT_ONCE = 1 << 20  # elements; about ten tensors of this size exist at a time


@public
@torch.no_grad()
def mean_average_precision(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    *,
    metric: str = "dot",
    at_r: bool = False,
) -> float:
    r"""Compute the mean average precision of queries among candidates of many classes.

    .. math:: AP_i = \frac{1}{R_i} \sum_{t=1}^{T_i} \mathrm{rel}_i(t) \,
        \frac{1}{t} \sum_{u \le t} \mathrm{rel}_i(u), \quad T_i = G \text{ or } R_i

    Candidate t of query i is relevant if it has the query's class; R_i candidates are relevant.
    The sum runs over all G candidates (MAP), or with ``at_r=True`` over the first R_i (MAP@R of
    Musgrave et al.). Ties contribute their expectation over all orders, so an encoder whose rows
    are all equal scores chance. A relevant candidate whose score is not finite is ranked last.

    Args:
        queries: ``[Q, D]``, one row per query, for example images.
        gallery: ``[G, D]``, the candidates, for example texts. Swap both for the other direction.
        query_ids: ``[Q]`` integers, the class of every query.
        gallery_ids: ``[G]`` integers, the class of every candidate.
        metric: ``"dot"`` scores dot products of the rows as given, ``"cosine"`` those of
            normalised rows; a zero row then scores 0.
        at_r: use only the first R_i candidates of every query.

    Returns:
        The mean over all queries, between 0 and 1.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit, an embedding is not finite, or no candidate has a query's
            class.

    Source: Musgrave et al., A Metric Learning Reality Check, 2020, section 3.2, for MAP@R; McSherry
    and Najork, Computing Information Retrieval Performance Measures Efficiently in the Presence of
    Tied Scores, 2008, for the ties.

    Example:
        >>> import torch
        >>> from itm_kernels.retrieval import mean_average_precision
        >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> text = torch.tensor([[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]])
        >>> classes = torch.tensor([0, 1]), torch.tensor([0, 1, 0])
        >>> round(mean_average_precision(image, text, *classes), 4)
        0.6667
    """
    queries, gallery = _checks.embeddings(queries=queries, gallery=gallery)
    for name, ids, rows in (
        ("query_ids", query_ids, queries),
        ("gallery_ids", gallery_ids, gallery),
    ):
        _checks.identifiers(name, ids, len(rows), queries)
    _checks.option("metric", metric, METRICS)
    check_finite(queries=queries, gallery=gallery)
    query_ids, gallery_ids = (ids.to(queries.device).long() for ids in (query_ids, gallery_ids))
    remedy = "leave out queries without a relevant candidate"
    check_partners(("query_ids", "gallery_ids"), query_ids, gallery_ids, remedy)
    first = _first_copies(row_keys(gallery))
    queries, gallery = wide(for_metric(queries, metric)), wide(for_metric(gallery, metric))
    at_once = max(1, _SCORES_AT_ONCE // len(gallery))
    total = torch.zeros((), dtype=torch.float64, device=queries.device)
    for block, ids in zip(queries.split(at_once), query_ids.split(at_once), strict=True):
        # Equal rows tie, even if the blocks of the product round their scores differently.
        scores = _products(block, gallery)[:, first]
        total += _average_precision(scores, ids[:, None] == gallery_ids, at_r).sum()
    return float(total) / len(queries)


_products = outside_autocast(torch.nn.functional.linear)


def _first_copies(keys: Tensor) -> Tensor:  # [G] -> [G]
    """Return the index of the first row that equals each row."""
    _, group = keys.unique(return_inverse=True)
    order = torch.arange(len(keys), device=keys.device)
    return torch.full_like(order, len(order)).scatter_reduce(0, group, order, "amin")[group]


def _average_precision(
    scores: Tensor,  # [Q, G]
    relevant: Tensor,  # [Q, G] bool
    at_r: bool,
) -> Tensor:  # [Q]
    # NaN is sorted last, and ties with nothing.
    cost = (-scores).masked_fill(scores.isnan(), torch.inf)
    cost = cost.masked_fill(relevant & ~scores.isfinite(), torch.nan)
    cost, order = cost.sort(dim=1, stable=True)
    place = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    seen = relevant.gather(1, order).cumsum(1)
    R = seen[:, -1:]
    # Candidates begin .. end - 1 tie: r of these n are relevant, and r_before of those before them.
    new = torch.ones_like(relevant)
    new[:, 1:] = cost[:, 1:] != cost[:, :-1]
    begin = torch.where(new, place, 0).cummax(1).values
    last = torch.ones_like(relevant)
    last[:, :-1] = new[:, 1:]
    end = 1 + torch.where(last, place, len(place[0])).flip(1).cummin(1).values.flip(1)
    r_before = torch.where(begin > 0, seen.gather(1, (begin - 1).clamp_min(0)), 0)
    r, n = seen.gather(1, end - 1) - r_before, end - begin
    # Each of the tied places holds a relevant candidate with probability r / n. Given that, the
    # other r - 1 are spread uniformly over the other n - 1 places.
    others = (place - begin) * (r - 1).double() / (n - 1).clamp_min(1)
    expected = r / n.double() * (r_before + 1 + others) / (place + 1)
    if at_r:
        expected = expected.masked_fill(place >= R, 0)
    return expected.sum(1) / R[:, 0]
