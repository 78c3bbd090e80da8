"""Sum and max of hinges, and the hardest negatives of a batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from oracles.pairing import (
    Array,
    Ids,
    is_negative,
    number_of_pairs,
    positives,
    reduced,
    score_matrix,
)


class Hardest(NamedTuple):
    """Positive score per text; hardest negative text per image and image per text."""

    positive: Array
    text_score: Array
    text_index: NDArray[np.int64]
    image_score: Array
    image_index: NDArray[np.int64]


def hardest_negatives_from_scores(
    scores: Array, image_ids: Ids = None, text_ids: Ids = None
) -> Hardest:
    """Searches each row and column for its largest negative score, lowest index on a tie."""
    num_images, num_texts = scores.shape
    positive_of = positives(num_images, num_texts, image_ids, text_ids)
    positive = np.array([scores[positive_of[j], j] for j in range(num_texts)])
    text_score, text_index = np.full(num_images, -math.inf), np.full(num_images, -1)
    image_score, image_index = np.full(num_texts, -math.inf), np.full(num_texts, -1)
    for i in range(num_images):
        for j in range(num_texts):
            if is_negative(i, j, image_ids, text_ids):
                if scores[i, j] > text_score[i]:
                    text_score[i], text_index[i] = scores[i, j], j
                if scores[i, j] > image_score[j]:
                    image_score[j], image_index[j] = scores[i, j], i
    return Hardest(positive, text_score, text_index, image_score, image_index)


def hardest_negatives(
    image: Array, text: Array, image_ids: Ids = None, text_ids: Ids = None
) -> Hardest:
    """Searches the dot products of two sets of embeddings."""
    return hardest_negatives_from_scores(score_matrix(image, text), image_ids, text_ids)


def hinge(value: float) -> float:
    """Computes [value]+."""
    return value if value > 0 else 0.0


def sum_of_hinges_from_scores(
    scores: Array,
    margin: float = 0.2,
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "sum",
) -> Array:
    """Adds every violation of each pair, over its image's texts and its text's images."""
    num_images, num_texts = scores.shape
    positive_of = positives(num_images, num_texts, image_ids, text_ids)
    values = np.zeros(num_texts)
    for j in range(num_texts):
        i = positive_of[j]
        if i < 0:
            continue  # a negative only
        for other_text in range(num_texts):
            if is_negative(i, other_text, image_ids, text_ids):
                values[j] += hinge(margin + scores[i, other_text] - scores[i, j])
        for other_image in range(num_images):
            if is_negative(other_image, j, image_ids, text_ids):
                values[j] += hinge(margin + scores[other_image, j] - scores[i, j])
    return reduced(values, reduction, number_of_pairs(positive_of))


def max_of_hinges_from_scores(
    scores: Array,
    margin: float = 0.2,
    mining: str = "hardest",
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "sum",
) -> Array:
    """Adds each pair's largest violation in either direction; no candidate contributes 0."""
    num_images, num_texts = scores.shape
    positive_of = positives(num_images, num_texts, image_ids, text_ids)
    values = np.zeros(num_texts)
    for j in range(num_texts):
        i = positive_of[j]
        if i < 0:
            continue  # a negative only
        positive = scores[i, j]
        texts = [
            float(scores[i, other])
            for other in range(num_texts)
            if is_negative(i, other, image_ids, text_ids)
        ]
        images = [
            float(scores[other, j])
            for other in range(num_images)
            if is_negative(other, j, image_ids, text_ids)
        ]
        for candidates in (texts, images):
            if mining == "semihard":
                candidates = [score for score in candidates if score < positive]
            if candidates:
                values[j] += hinge(margin + max(candidates) - positive)
    return reduced(values, reduction, number_of_pairs(positive_of))


def sum_of_hinges(
    image: Array,
    text: Array,
    margin: float = 0.2,
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "sum",
) -> Array:
    """Sum of hinges over the dot products of two sets of embeddings."""
    scores = score_matrix(image, text)
    return sum_of_hinges_from_scores(scores, margin, image_ids, text_ids, reduction)


def max_of_hinges(
    image: Array,
    text: Array,
    margin: float = 0.2,
    mining: str = "hardest",
    image_ids: Ids = None,
    text_ids: Ids = None,
    reduction: str = "sum",
) -> Array:
    """Max of hinges over the dot products of two sets of embeddings."""
    scores = score_matrix(image, text)
    return max_of_hinges_from_scores(scores, margin, mining, image_ids, text_ids, reduction)
