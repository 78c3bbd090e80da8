"""Image-text matching: the sampler's probabilities and the cross-entropy."""

from __future__ import annotations

import math

import numpy as np

from oracles.pairing import Array, Ids, is_negative, log_of_sum_of_exponentials


def sampler_probabilities(
    scores: Array, temperature: float, image_ids: Ids = None, text_ids: Ids = None
) -> Array:
    """p(j | i): softmax over the valid negatives of a row; all zero where there are none."""
    num_images, num_texts = scores.shape
    probabilities = np.zeros(scores.shape)
    for i in range(num_images):
        valid = [j for j in range(num_texts) if is_negative(i, j, image_ids, text_ids)]
        log_total = log_of_sum_of_exponentials([float(scores[i, j]) / temperature for j in valid])
        for j in valid:
            probabilities[i, j] = math.exp(float(scores[i, j]) / temperature - log_total)
    return probabilities


def itm(logits: Array, labels: list[int], label_smoothing: float = 0.0) -> float:
    """Cross-entropy meaned over rows; logits [P] are the log-odds of a match, [P, 2] per class."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        pair = [0.0, float(row)] if logits.ndim == 1 else [float(row[0]), float(row[1])]
        log_total = log_of_sum_of_exponentials(pair)
        for target in (0, 1):
            share = label_smoothing / 2 + (1 - label_smoothing if target == label else 0.0)
            total += share * (log_total - pair[target])
    return total / len(labels)
