"""Positives and negatives of a batch, and the similarity of two rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = Sequence[int] | NDArray[np.int64] | None


def positives(num_images: int, num_texts: int, image_ids: Ids, text_ids: Ids) -> list[int]:
    """Returns, for every text, the image it belongs to; -1 for a text without one."""
    if image_ids is None or text_ids is None:
        assert num_images == num_texts
        return list(range(num_texts))
    if list(image_ids) == list(text_ids):
        return list(range(num_texts))
    found = []
    for j in range(num_texts):
        matches = [i for i in range(num_images) if image_ids[i] == text_ids[j]]
        if len(matches) > 1:
            raise ValueError(f"text {j} has {len(matches)} images")
        found.append(matches[0] if matches else -1)
    return found


def is_negative(i: int, j: int, image_ids: Ids, text_ids: Ids) -> bool:
    """Returns whether image i and text j are a negative pair: never when they share an id."""
    if image_ids is None or text_ids is None:
        return i != j
    return bool(image_ids[i] != text_ids[j])


def normalized(x: Array) -> Array:
    """Divides every row by its Euclidean norm."""
    rows = [row / math.sqrt(float(np.dot(row, row))) for row in x]
    return np.array(rows).reshape(x.shape)


def pair_value(first: Array, second: Array, metric: str) -> float:
    """Compares two vectors: a similarity for dot and cosine, a distance otherwise."""
    if metric == "dot":
        return float(np.dot(first, second))
    if metric == "cosine":
        lengths = math.sqrt(float(np.dot(first, first))) * math.sqrt(float(np.dot(second, second)))
        return float(np.dot(first, second)) / lengths
    difference = first - second
    if metric == "l1":
        return float(np.sum(np.abs(difference)))
    if metric == "l2":
        return math.sqrt(float(np.sum(difference * difference)))
    if metric == "sqeuclidean":
        return float(np.sum(difference * difference))
    raise ValueError(metric)


def score_matrix(x: Array, y: Array, metric: str = "dot") -> Array:
    """Compares every row of x with every row of y."""
    values = np.empty((len(x), len(y)))
    for i in range(len(x)):
        for j in range(len(y)):
            values[i, j] = pair_value(x[i], y[j], metric)
    return values


def reduced(values: Array, reduction: str, count: int | None = None) -> Array:
    """Applies a reduction to one value per pair (or per row); a mean divides by the count."""
    if reduction == "none":
        return values
    total = np.float64(0.0)
    for value in values:
        total = total + value
    count = len(values) if count is None else max(count, 1)
    return np.asarray(total if reduction == "sum" else total / count)


def number_of_pairs(positive_of: list[int]) -> int:
    """Counts the texts that have an image."""
    return sum(1 for i in positive_of if i >= 0)


def log_of_sum_of_exponentials(terms: list[float]) -> float:
    """Computes log(sum(exp(term))) with the maximum taken out; an empty sum is -inf."""
    if not terms:
        return -math.inf
    largest = max(terms)
    return largest + math.log(sum(math.exp(term - largest) for term in terms))
