"""The losses built on log-sum-exp: InfoNCE, SigLIP, InfoCMR, multi-view alignment and ITO."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oracles.pairing import (
    Array,
    Ids,
    is_negative,
    log_of_sum_of_exponentials,
    number_of_pairs,
    pair_value,
    positives,
    reduced,
    score_matrix,
)


def log_sum_exp(
    x: Array, y: Array, scale: float, x_ids: Ids = None, y_ids: Ids = None
) -> tuple[Array, Array]:
    """Row and column log-sum-exp of scale * x y^T; pairs that share an id are left out."""
    logits = scale * score_matrix(x, y)
    kept = np.ones(logits.shape, dtype=bool)
    if x_ids is not None and y_ids is not None:
        for i in range(len(x)):
            for j in range(len(y)):
                kept[i, j] = x_ids[i] != y_ids[j]
    row = [
        log_of_sum_of_exponentials([logits[i, j] for j in range(len(y)) if kept[i, j]])
        for i in range(len(x))
    ]
    column = [
        log_of_sum_of_exponentials([logits[i, j] for i in range(len(x)) if kept[i, j]])
        for j in range(len(y))
    ]
    return np.array(row), np.array(column)


def info_nce(
    image: Array,
    text: Array,
    logit_scale: float = 20.0,
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "mean",
) -> Array:
    """Symmetric cross-entropy over cosines, the mean of both directions."""
    cosines = score_matrix(image, text, "cosine")
    return info_nce_from_scores(cosines, logit_scale, image_ids, text_ids, reduction)


def info_nce_from_scores(
    scores: Array,
    logit_scale: float = 20.0,
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "mean",
) -> Array:
    """The same over a given score matrix."""
    logits = logit_scale * scores
    num_images, num_texts = scores.shape
    positive_of = positives(num_images, num_texts, image_ids, text_ids)
    values = np.zeros(num_texts)
    for j in range(num_texts):
        i = positive_of[j]
        if i < 0:
            continue  # a negative only
        over_texts, over_images = [logits[i, j]], [logits[i, j]]
        for other in range(num_texts):
            if is_negative(i, other, image_ids, text_ids):
                over_texts.append(logits[i, other])
        for other in range(num_images):
            if is_negative(other, j, image_ids, text_ids):
                over_images.append(logits[other, j])
        from_image = log_of_sum_of_exponentials(over_texts) - logits[i, j]
        from_text = log_of_sum_of_exponentials(over_images) - logits[i, j]
        values[j] = 0.5 * (from_image + from_text)
    return reduced(values, reduction, number_of_pairs(positive_of))


def softplus(value: float) -> float:
    """Computes log(1 + exp(value)) without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def sigmoid(
    image: Array,
    text: Array,
    logit_scale: float = 10.0,
    logit_bias: float = -10.0,
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "mean",
) -> Array:
    """SigLIP: every positive and every negative pair is a binary decision, summed per text."""
    cosines = score_matrix(image, text, "cosine")
    return sigmoid_from_scores(cosines, logit_scale, logit_bias, image_ids, text_ids, reduction)


def sigmoid_from_scores(
    scores: Array,
    logit_scale: float = 10.0,
    logit_bias: float = -10.0,
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "mean",
) -> Array:
    """The same over a given score matrix."""
    logits = logit_scale * scores + logit_bias
    num_images, num_texts = scores.shape
    positive_of = positives(num_images, num_texts, image_ids, text_ids)
    values = np.zeros(num_texts)
    for j in range(num_texts):
        if positive_of[j] >= 0:
            values[j] += softplus(-logits[positive_of[j], j])
        for i in range(num_images):
            if is_negative(i, j, image_ids, text_ids):
                values[j] += softplus(logits[i, j])
    return reduced(values, reduction, number_of_pairs(positive_of))


def info_cmr(
    image: Array,
    text: Array,
    temperature: float = 0.05,
    image_ids: Ids = None,
    text_ids: Ids = None,
    synthetic_text: Array | None = None,
    synthetic_text_valid: NDArray[np.bool_] | None = None,
    synthetic_image: Array | None = None,
    synthetic_image_valid: NDArray[np.bool_] | None = None,
    noise: Array | None = None,
    reduction: str = "mean",
    scores: Array | None = None,
) -> Array:
    """InfoCMR with given synthetic texts [N, m, D], synthetic images [M, m, D], noise [Z, D].

    Given scores [N, M] take the place of the cosines of images and texts.
    """
    cosines = score_matrix(image, text, "cosine") if scores is None else scores
    positive_of = positives(len(image), len(text), image_ids, text_ids)

    def extras(
        anchor: Array, own: int, vectors: Array | None, valid: NDArray[np.bool_] | None
    ) -> list[float]:
        terms = []
        if vectors is not None:
            for k in range(vectors.shape[1]):
                if valid is None or valid[own, k]:
                    terms.append(pair_value(anchor, vectors[own, k], "cosine") / temperature)
        if noise is not None:
            for vector in noise:
                terms.append(pair_value(anchor, vector, "cosine") / temperature)
        return terms

    values = np.zeros(len(text))
    for j in range(len(text)):
        i = positive_of[j]
        if i < 0:
            continue  # a negative only
        positive = float(cosines[i, j]) / temperature
        over_texts = [positive] + extras(image[i], i, synthetic_text, synthetic_text_valid)
        over_images = [positive] + extras(text[j], j, synthetic_image, synthetic_image_valid)
        for other in range(len(text)):
            if is_negative(i, other, image_ids, text_ids):
                over_texts.append(float(cosines[i, other]) / temperature)
        for other in range(len(image)):
            if is_negative(other, j, image_ids, text_ids):
                over_images.append(float(cosines[other, j]) / temperature)
        from_image = log_of_sum_of_exponentials(over_texts) - positive
        from_text = log_of_sum_of_exponentials(over_images) - positive
        values[j] = from_image + from_text
    return reduced(values, reduction, number_of_pairs(positive_of))


def multi_view_alignment(images: Array, texts: Array, logit_scale: float = 20.0) -> float:
    """Mean over all (image view, text view) pairs of the symmetric cross-entropy."""
    total = 0.0
    for image in images:
        for text in texts:
            total += float(info_nce(image, text, logit_scale))
    return total / (len(images) * len(texts))


def fusion_contrastive(fused: Array, logit_scale: float = 20.0) -> float:
    """NT-Xent between fused views: the other view of the same sample is the positive."""
    num_views, size = fused.shape[:2]
    terms = []
    for first in range(num_views):
        for second in range(num_views):
            if first == second:
                continue
            total = 0.0
            for n in range(size):
                anchor = fused[first, n]
                candidates = []
                for m in range(size):
                    candidates.append(logit_scale * pair_value(anchor, fused[second, m], "cosine"))
                positive = candidates[n]
                for m in range(size):
                    if m != n:
                        within = pair_value(anchor, fused[first, m], "cosine")
                        candidates.append(logit_scale * within)
                total += log_of_sum_of_exponentials(candidates) - positive
            terms.append(total / size)
    return sum(terms) / len(terms)


def ito(
    images: Array, texts: Array, fused: Array, logit_scale: float = 20.0, weight: float = 2.0
) -> float:
    """L = L_align + weight * L_fusion."""
    alignment = multi_view_alignment(images, texts, logit_scale)
    return alignment + weight * fusion_contrastive(fused, logit_scale)
