"""Rank of the best positive of every query, without a score matrix in memory."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend
from itm_kernels._policies import RANKS_IN_KERNEL
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, index_empty, torch_op

# Elements of a block: 512 KiB of int64 stay in the cache of a CPU. On other devices a block takes
# five launches and 64 MiB.
_BLOCK_ON_CPU, _BLOCK = 1 << 16, 1 << 23
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Ranks(NamedTuple):
    """The rank of the best positive of every query, and its ties."""

    rank: Tensor  # [Q] fp64, the middle rank: 1 + above + ties / 2
    above: Tensor  # [Q] int64, negatives that score above the best positive
    ties: Tensor  # [Q] int64, negatives that tie with it
    positives: Tensor  # [Q] int64, positives that tie for the best; 0 if none has a finite score


def _fake(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, gallery_keys: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    Q = queries.shape[0]
    return index_empty(queries, Q), index_empty(queries, Q), index_empty(queries, Q)


define(
    "ranks_forward",
    "(Tensor queries, Tensor gallery, Tensor query_ids, Tensor gallery_ids, Tensor gallery_keys) "
    "-> (Tensor above, Tensor ties, Tensor positives)",
    _fake,
)


def _middle_ranks_fake(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, gallery_keys: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    counts = _fake(queries, gallery, query_ids, gallery_ids, gallery_keys)
    return queries.new_empty(queries.shape[0], dtype=torch.float64), *counts


define(
    "middle_ranks",
    "(Tensor queries, Tensor gallery, Tensor query_ids, Tensor gallery_ids, Tensor gallery_keys) "
    "-> (Tensor rank, Tensor above, Tensor ties, Tensor positives)",
    _middle_ranks_fake,
    runs_with="ranks",
    triton_file="ranks",
)
define(
    "row_keys",
    "(Tensor x) -> Tensor",
    lambda x: index_empty(x, x.shape[0]),
    runs_with="ranks",
)


@torch.no_grad()
def row_keys(x: Tensor, backend: str = "auto") -> Tensor:  # [G, D] -> [G]
    """Return int64 keys: equal rows have equal keys, others only by chance (less than 1 in 2^50).

    A product in blocks may give equal rows scores that differ in the last bit; equal keys identify
    their tie. Keys are computed in integers, so that no rounding depends on the place of a row.
    """
    namespace = resolve("ranks", x, backend)
    if namespace in RANKS_IN_KERNEL:
        return torch_op(namespace, "row_keys")(x)
    weights = _mixed(torch.arange(1, x.shape[1] + 1, device=x.device)) | 1
    rows = max(1, (_BLOCK_ON_CPU if x.is_cpu else _BLOCK) // x.shape[1])
    keys = []
    for block in x.split(rows):
        bits = (block + 0.0).view(_BITS[x.element_size()])  # -0 becomes 0
        # A product propagates differences to higher bits only, so the low half gets the high half.
        bits = bits ^ (bits >> (4 * x.element_size()))
        keys.append((bits * weights).sum(1))
    return torch.cat(keys)


def _mixed(numbers: Tensor) -> Tensor:
    """Return 64 pseudo-random bits for every integer, by splitmix64 with wrapping products."""
    bits = numbers * -7046029254386353131  # 0x9E3779B97F4A7C15
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ (bits >> shift & (1 << (64 - shift)) - 1)) * factor
    return bits ^ (bits >> 31 & (1 << 33) - 1)


@outside_autocast
@torch.no_grad()
def fused_ranks(
    queries: Tensor,  # [Q, D]
    gallery: Tensor,  # [G, D]
    query_ids: Tensor,  # [Q]
    gallery_ids: Tensor,  # [G]
    gallery_keys: Tensor,  # [G], equal for candidates that tie however their products are rounded
    backend: str,
) -> Ranks:
    """Compute `ranks` of checked arguments."""
    inputs = queries, gallery, query_ids, gallery_ids, gallery_keys
    namespace = resolve("ranks", queries, backend)
    if namespace in RANKS_IN_KERNEL:
        return Ranks(*torch_op(namespace, "middle_ranks")(*inputs))
    implementation = reference.ranks if namespace is None else torch_op(namespace, "ranks_forward")
    above, ties, positives = implementation(*inputs)
    # A query whose positives have no finite score ranks behind all of its negatives.
    ordered = gallery_ids.sort().values
    first, end = (torch.searchsorted(ordered, query_ids, right=right) for right in (False, True))
    above = torch.where(positives > 0, above, len(ordered) - (end - first))
    return Ranks(1 + above + ties.double() / 2, above, ties, positives)


@public
def ranks(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    backend: Backend = "auto",
) -> Ranks:
    r"""Return, for every query, the rank of its best positive among all candidates.

    .. math:: r_i = 1 + |\{j : s_{ij} > s_i^+\}| + |\{j \notin P(i) : s_{ij} = s_i^+\}| / 2,
        \quad s_i^+ = \max_{p \in P(i)} s_{ip}

    Negatives that tie with the best positive count half: a rank is the middle of its ties.
    Candidates that are equal rows tie, even if their computed scores differ in the last bit.
    A positive with a score that is not finite ranks behind all negatives, and a negative with a
    score of NaN behind all other candidates.

    Args:
        queries: `[Q, D]`, not normalised: scores are dot products.
        gallery: `[G, D]`.
        query_ids: `[Q]` integers; the positives of a query are the candidates with its id.
        gallery_ids: `[G]` integers.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `rank` `[Q]` float64, the middle rank, and three counts `[Q]` in int64: `above`, the
        negatives that score above the best positive; `ties`, the negatives that tie with it; and
        `positives`, the positives that share its score. `positives` is 0 for a query whose
        positives have no finite score: it ranks behind all negatives, at G + 1 if it has no
        positive.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: invalid shapes or devices.
        RuntimeError: the requested backend cannot run here.

    >>> import torch
    >>> x = torch.tensor([[0.8, 0.9], [0.1, 0.3], [0.5, 0.5]])
    >>> ranks(x, torch.eye(2), torch.tensor([0, 1, 0]), torch.tensor([0, 1])).rank
    tensor([2.0000, 1.0000, 1.5000], dtype=torch.float64)
    """
    queries, gallery = _checks.embeddings(queries=queries, gallery=gallery)
    _checks.identifiers("query_ids", query_ids, queries.shape[0], queries)
    _checks.identifiers("gallery_ids", gallery_ids, gallery.shape[0], queries)
    device = queries.device
    ids = query_ids.to(device).long(), gallery_ids.to(device).long()
    return fused_ranks(queries, gallery, *ids, row_keys(gallery, backend=backend), backend)
