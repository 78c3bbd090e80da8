"""Calls of InfoCMR with all options: of embeddings, and of a score matrix."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._options import (
    Backend,
    Clustering,
    Exchange,
    Gradients,
    Reduction,
    Unmatched,
    Weights,
)
from itm_kernels._public import UnnamedValueError, names_errors
from itm_kernels.losses._contrast import (
    Embeddings,
    contrast_from_scores,
    cross_entropy_of_contrast,
)
from itm_kernels.losses._info_cmr_by_parts import (
    Negatives,
    checked_negatives,
    info_cmr_of_pairs,
    values_of_contrast,
)
from itm_kernels.losses._logit_scale import checked_scale
from itm_kernels.losses._module import check_options, spread
from itm_kernels.losses._reduction import reduce
from itm_kernels.losses._score_matrix import embeddings_of_scores, pairs_of_scores
from itm_kernels.losses.over_ranks._info_cmr import info_cmr_over_ranks
from itm_kernels.ops._log_sum_exp import as_scalar
from itm_kernels.ops._rbf_synthesis import SynthesisOptions
from itm_kernels.synthesis import RIDGE


@names_errors("info_cmr_loss")
def info_cmr(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scales: tuple[Any, Any, Any],  # logit_scale, temperature and max_scale
    draw: bool,  # False: no noise, and a k-means start that depends only on the rows
    *,
    num_clusters: int,
    sigma: float,
    weights: Weights,
    clustering: Clustering,
    num_noise: int,
    detach: bool,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    generator: torch.Generator | None,
    reduction: Reduction,
    backend: Backend,
    group: ProcessGroup | None,
    gradients: Gradients,
    exchange: Exchange,
) -> Tensor:
    """Compute `info_cmr_loss`."""
    options = SynthesisOptions(num_clusters, sigma, weights, RIDGE)
    extra = Negatives(options, clustering, detach, num_noise, generator, draw)
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        given = image, text, scales, extra, image_ids, text_ids, unmatched, reduction, backend
        return info_cmr_over_ranks(*given, agreement)
    image, text = _checks.embeddings(image=image, text=text)
    extra = checked_negatives(extra)
    check_options(reduction, backend)
    scale = checked_scale(image, *scales)
    pairs, absent, _ = _positives.match(image, text, image_ids, text_ids, unmatched)
    return info_cmr_of_pairs(image, text, scale, pairs, absent, extra, reduction, backend)


def info_cmr_from_scores(
    scores: Tensor,  # [N, M]
    image: Tensor | None,  # [N, D]
    text: Tensor | None,  # [M, D]
    scale: float | Tensor,
    draw: bool,
    *,
    num_clusters: int,
    sigma: float,
    weights: Weights,
    clustering: Clustering,
    num_noise: int,
    detach: bool,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    unmatched: Unmatched,
    generator: torch.Generator | None,
    reduction: Reduction,
    backend: Backend,
    group: ProcessGroup | None,
    gradients: Gradients,
    exchange: Exchange,
) -> Tensor:
    """Compute the loss of a score matrix; embeddings are for synthetic negatives and noise."""
    pairs, absent, _ = pairs_of_scores(scores, image_ids, text_ids, unmatched, group)
    options = SynthesisOptions(num_clusters, sigma, weights, RIDGE)
    extra = Negatives(options, clustering, detach, num_noise, generator, draw)
    extra = checked_negatives(extra)
    needed = [f"num_clusters = {num_clusters}"] if num_clusters else []
    needed += [f"num_noise = {num_noise}"] if num_noise and draw else []
    if not needed:
        found = contrast_from_scores(scores, as_scalar(scale, scores), pairs, absent, backend)
        values = cross_entropy_of_contrast(found, absent, 1.0, backend)
        return reduce(values, reduction, absent)
    if image is None or text is None:
        missing = [f"{name}=" for name, x in (("image", image), ("text", text)) if x is None]
        raise UnnamedValueError(
            f"{' and '.join(missing)} must hold pooled embeddings for {' and '.join(needed)}; pass "
            "them, or set num_clusters = num_noise = 0 for the loss of the scores alone"
        )
    image, text = embeddings_of_scores(scores, image, text)
    if torch.float64 in (scores.dtype, image.dtype):  # the sums of all negatives share a precision
        scores, image, text = (t.double() for t in (scores, image, text))
    sides = Embeddings(image, backend), Embeddings(text, backend)
    scale = as_scalar(scale, scores)
    found = contrast_from_scores(scores, scale, pairs, absent, backend)
    values = values_of_contrast(found, *sides, scale, pairs, absent, extra)
    return reduce(values, reduction, absent)
