"""The intra-modal constraint in its three modes, and L_IMC."""

from __future__ import annotations

import math

import numpy as np

from oracles.hinges import max_of_hinges
from oracles.pairing import Array, Ids, is_negative, pair_value, reduced


def delta(first: Array, second: Array, metric: str) -> float:
    """Computes the raw distance of a metric; cosine's is one minus the cosine."""
    value = pair_value(first, second, metric)
    return 1.0 - value if metric == "cosine" else value


def counts(n: int, m: int, ids: Ids) -> bool:
    """Returns whether an ordered pair takes part: not the diagonal, not a shared id."""
    return n != m and is_negative(n, m, ids, ids)


def intra_modal_sum(
    x: Array, lower: float, upper: float, metric: str = "cosine", ids: Ids = None
) -> Array:
    """Adds, per row, the distances strictly inside the band."""
    values = np.zeros(len(x))
    for n in range(len(x)):
        for m in range(len(x)):
            if counts(n, m, ids):
                distance = delta(x[n], x[m], metric)
                if lower < distance < upper:
                    values[n] += distance
    return values


def official_cosine_rows(x: Array, lower: float, upper: float, ids: Ids) -> Array:
    """Adds, per row, the dot products strictly between upper and 1 - lower."""
    values = np.zeros(len(x))
    for n in range(len(x)):
        for m in range(len(x)):
            if counts(n, m, ids):
                similarity = float(np.dot(x[n], x[m]))
                if upper < similarity < 1.0 - lower:
                    values[n] += similarity
    return values


def official_distance_rows(
    x: Array, metric: str, lower: float, upper: float, thresholds: str, ids: Ids
) -> Array:
    """Adds, per row, the row-normalised distances strictly between two ranked thresholds."""
    size = len(x)
    scaled = np.zeros((size, size))
    for n in range(size):
        distances = [pair_value(x[n], x[m], metric) if n != m else 0.0 for m in range(size)]
        length = max(math.sqrt(sum(value * value for value in distances)), 1e-12)
        for m in range(size):
            scaled[n, m] = distances[m] / length
    low_rank, high_rank = round(lower * size), round(upper * size)
    values = np.zeros(size)
    for n in range(size):
        ranked = sorted(float(value) for value in scaled[0 if thresholds == "row0" else n])
        low = ranked[low_rank]
        high = ranked[high_rank] if high_rank < size else math.inf
        for m in range(size):
            if counts(n, m, ids) and low < scaled[n, m] < high:
                values[n] += scaled[n, m]
    return values


def repel_rows(x: Array, metric: str, lower: float, upper: float, ids: Ids) -> Array:
    """Adds, per row, [upper - distance]+ over the distances above lower."""
    values = np.zeros(len(x))
    for n in range(len(x)):
        for m in range(len(x)):
            if counts(n, m, ids):
                distance = delta(x[n], x[m], metric)
                if distance > lower and upper - distance > 0:
                    values[n] += upper - distance
    return values


def intra_modal(
    x: Array,
    metric: str = "cosine",
    lower: float = 0.05,
    upper: float = 0.5,
    weight: float = 1.0,
    mode: str = "official",
    thresholds: str = "row0",
    ids: Ids = None,
    reduction: str | None = None,
) -> Array:
    """Computes the constraint; paper sums over rows, official and repel mean over them."""
    if mode == "paper":
        rows = intra_modal_sum(x, lower, upper, metric, ids)
    elif mode == "repel":
        rows = repel_rows(x, metric, lower, upper, ids)
    elif metric == "cosine":
        rows = official_cosine_rows(x, lower, upper, ids)
    else:
        rows = official_distance_rows(x, metric, lower, upper, thresholds, ids)
    own = "sum" if mode == "paper" else "mean"
    return reduced(weight * rows, own if reduction is None else reduction)


def imc(
    image: Array,
    text: Array,
    margin: float = 0.2,
    metric: str = "cosine",
    lower: float = 0.05,
    upper: float = 0.5,
    weight: float = 1.0,
    mode: str = "official",
    thresholds: str = "row0",
    image_ids: Ids = None,
    text_ids: Ids = None,
) -> Array:
    """L_IMC = L_MH + IMC(image) + IMC(text)."""
    hinges = max_of_hinges(image, text, margin, "hardest", image_ids, text_ids, "sum")
    of_image = intra_modal(image, metric, lower, upper, weight, mode, thresholds, image_ids)
    of_text = intra_modal(text, metric, lower, upper, weight, mode, thresholds, text_ids)
    return np.asarray(hinges + of_image + of_text)
