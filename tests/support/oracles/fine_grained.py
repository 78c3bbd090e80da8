"""Scores of words against regions: late interaction and stacked cross attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from oracles.pairing import Array, Ids, log_of_sum_of_exponentials, normalized


def counted(sets: Array, counts: Ids) -> list[Array]:
    """The rows of every set without its padding."""
    return [rows if counts is None else rows[: int(counts[i])] for i, rows in enumerate(sets)]


def dot(x: Array, y: Array) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def of_all(
    score: Callable[[Array, Array], float], images: list[Array], texts: list[Array], direction: str
) -> Array:
    """The scores of all images and texts; 0 where a side is empty."""
    scores = np.zeros((len(images), len(texts)))
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            context, query = (image, text) if direction == "t2i" else (text, image)
            if len(context) and len(query):
                scores[i, j] = score(context, query)
    return scores


def late_interaction(
    regions: Array,
    words: Array,
    region_counts: Ids = None,
    word_counts: Ids = None,
    direction: str = "t2i",
    reduce: str = "mean",
    normalize: bool = True,
) -> Array:
    """The best match of every word among the regions (t2i) or of every region among the words."""

    def score(context: Array, query: Array) -> float:
        if normalize:
            context, query = normalized(context), normalized(query)
        best = [max(dot(c, q) for c in context) for q in query]
        return math.fsum(best) / (len(best) if reduce == "mean" else 1)

    return of_all(score, counted(regions, region_counts), counted(words, word_counts), direction)


def normed(products: list[float], feature_norm: str) -> list[float]:
    """The products of one context row with all rows of the query, normalised."""
    if feature_norm == "softmax":
        weights = [math.exp(s - max(products)) for s in products]
        return [w / math.fsum(weights) for w in weights]
    if feature_norm in ("clipped", "clipped_l2norm"):
        products = [s if s > 0 else 0.1 * s for s in products]
    if feature_norm in ("l2norm", "clipped_l2norm"):
        norm = math.sqrt(math.fsum(s * s for s in products)) + 1e-8
        products = [s / norm for s in products]
    return products


def attended(context: Array, query: Array, feature_norm: str, smooth: float) -> list[Array]:
    """For every row of the query, the vector that it attends to in the context."""
    weights = np.array([normed([dot(c, q) for q in query], feature_norm) for c in context])
    vectors = []
    for q in range(len(query)):
        logits = [smooth * float(w) for w in weights[:, q]]
        shares = [math.exp(z - log_of_sum_of_exponentials(logits)) for z in logits]
        vectors.append(sum(share * c for share, c in zip(shares, context, strict=True)))
    return vectors


def cross_attention(
    regions: Array,
    words: Array,
    region_counts: Ids = None,
    word_counts: Ids = None,
    direction: str = "t2i",
    feature_norm: str = "clipped_l2norm",
    smooth: float = 9.0,
    aggregate: str = "log_sum_exp",
    scale: float = 6.0,
) -> Array:
    """The cosines of every word and the vector it attends to, aggregated (t2i; i2t the reverse)."""

    def score(context: Array, query: Array) -> float:
        cosines = []
        for row, vector in zip(query, attended(context, query, feature_norm, smooth), strict=True):
            norms = math.sqrt(dot(row, row)) * math.sqrt(dot(vector, vector))
            cosines.append(dot(row, vector) / max(norms, 1e-8))
        return {
            "log_sum_exp": log_of_sum_of_exponentials([scale * c for c in cosines]) / scale,
            "mean": math.fsum(cosines) / len(cosines),
            "sum": math.fsum(cosines),
            "max": max(cosines),
        }[aggregate]

    return of_all(score, counted(regions, region_counts), counted(words, word_counts), direction)
