"""InfoCMR as one operator, or composed of batch sums, synthetic negatives and noise."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._options import Clustering
from itm_kernels._positives import Pairs
from itm_kernels.losses._contrast import (
    Contrast,
    Embeddings,
    contrast,
    cross_entropy,
    gather_image,
    ids_or_indices,
    log_sums_of_noise,
    log_sums_of_synthetic,
    mean_cross_entropy,
)
from itm_kernels.losses._reduction import reduce, zero_absent
from itm_kernels.ops._info_cmr import fused_info_cmr_total, info_cmr_total_namespace
from itm_kernels.ops._info_nce import fused_info_nce_total
from itm_kernels.ops._log_sum_exp import as_scalar
from itm_kernels.ops._rbf_synthesis import (
    SynthesisLogits,
    SynthesisOptions,
    check_synthesis_options,
)
from itm_kernels.ops._unit_synthesis import normalises_rows
from itm_kernels.synthesis import ITERATIONS, logits_of_rows, logits_of_unit_rows


class Negatives(NamedTuple):
    """The negatives besides the batch: synthetic vectors and noise."""

    options: SynthesisOptions  # with num_clusters 0, nothing is synthesised
    clustering: Clustering
    detach: bool
    num_noise: int
    generator: torch.Generator | None
    draw: bool  # False: no noise, and a k-means start that depends only on the rows


def checked_negatives(extra: Negatives) -> Negatives:
    """Check the options of a loss; return them with sigma as a float."""
    check_synthesis_options(*extra.options, least=0)
    _checks.option("clustering", extra.clustering, get_args(Clustering))
    _checks.integer("num_noise", extra.num_noise, least=0)
    _checks.generator(extra.generator)
    return extra._replace(options=extra.options._replace(sigma=float(extra.options.sigma)))


def info_cmr_of_pairs(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    scale: float | Tensor,
    pairs: Pairs,
    absent: Tensor | None,  # [M] bool: texts that are only negatives
    extra: Negatives,
    reduction: str,
    backend: str,
) -> Tensor:
    """Compute the loss of checked arguments, in one operator where the backend has it."""
    options, clustering, detach, num_noise, generator, draw = extra
    whole = absent is None and reduction != "none"
    if whole and not (options.num_clusters or (num_noise and draw)):
        total = fused_info_nce_total(image, text, scale, pairs, 1.0, reduction == "mean", backend)
        if total is not None:
            return total
    if whole and detach and clustering == "shared":
        namespace = info_cmr_total_namespace(image, text, num_noise, backend)
        if namespace is not None:
            weight = 1 / text.shape[0] if reduction == "mean" else 1.0
            how = options, ITERATIONS, num_noise, draw, generator, weight, namespace
            return fused_info_cmr_total(image, text, scale, pairs, *how)
    rows = Embeddings(image, backend), Embeddings(text, backend)
    values = values_by_parts(*rows, as_scalar(scale, image), pairs, absent, extra)
    return reduce(values, reduction, absent)


def values_by_parts(
    images: Embeddings,  # [N, D]
    texts: Embeddings,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None,  # [M] bool: texts that are only negatives
    extra: Negatives,
) -> Tensor:  # [M]
    """Return the loss of every pair, and 0 for texts without one."""
    if not (extra.options.num_clusters or (extra.num_noise and extra.draw)):
        return mean_cross_entropy(images, texts, scale, pairs, absent, weight=1.0)
    v_ids, c_ids = ids_or_indices(pairs, images.raw)
    pairs = pairs._replace(image_ids=v_ids, text_ids=c_ids)
    found = contrast(images, texts, scale, pairs, absent)
    return values_of_contrast(found, images, texts, scale, pairs, absent, extra)


def values_of_contrast(
    found: Contrast,
    images: Embeddings,  # [N, D]
    texts: Embeddings,  # [M, D]
    scale: Tensor,  # []
    pairs: Pairs,
    absent: Tensor | None,  # [M] bool: texts that are only negatives
    extra: Negatives,
) -> Tensor:  # [M]
    """Add synthetic negatives and noise to the sums over the batch; return the same values."""
    options, clustering, detach, num_noise, generator, draw = extra
    v_ids, c_ids = ids_or_indices(pairs, images.raw)
    positive, *others = found
    from_image, from_text = ([negatives] for negatives in others)
    if options.num_clusters:
        logits = logits_of(images, texts, options, clustering, detach, generator, draw)
        from_image.append(
            gather_image(log_sums_of_synthetic(scale, *logits(images, v_ids, texts, c_ids)), pairs)
        )
        from_text.append(log_sums_of_synthetic(scale, *logits(texts, c_ids, images, v_ids)))
    if num_noise and draw:
        of_v, of_c = log_sums_of_noise((images, texts), num_noise, generator, scale)
        from_image.append(gather_image(of_v, pairs))
        from_text.append(of_c)
    values = cross_entropy(positive, from_image, from_text, 1.0, images.backend)
    return zero_absent(values, absent)


def logits_of(
    images: Embeddings,
    texts: Embeddings,
    options: SynthesisOptions,
    clustering: Clustering,
    detach: bool,
    generator: torch.Generator | None,
    draw: bool,
) -> Callable[[Embeddings, Tensor, Embeddings, Tensor], SynthesisLogits]:
    """Return a function for the cosines of anchors with vectors synthesised from members."""
    backend = images.backend
    plain = detach and clustering == "shared"
    if plain and normalises_rows(images.raw, texts.raw, backend):

        def of_raw(a: Embeddings, a_ids: Tensor, m: Embeddings, m_ids: Tensor) -> SynthesisLogits:
            sides = a.raw, a_ids, m.raw, m_ids
            return logits_of_rows(*sides, options, generator, backend, draw)

        return of_raw

    def of_unit(a: Embeddings, a_ids: Tensor, m: Embeddings, m_ids: Tensor) -> SynthesisLogits:
        how = options, clustering, detach, generator, backend
        return logits_of_unit_rows(a.unit, a_ids, m.unit, m_ids, *how, draw=draw)

    return of_unit
