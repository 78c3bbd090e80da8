"""k-means and the synthetic vectors of SynHNC."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oracles.pairing import Array, Ids, pair_value

Integers = NDArray[np.int64]


def nearest(point: Array, centroids: Array) -> int:
    """Finds the nearest centroid, the lowest index on a tie."""
    best, best_distance = 0, math.inf
    for k in range(len(centroids)):
        distance = pair_value(point, centroids[k], "sqeuclidean")
        if distance < best_distance:
            best, best_distance = k, distance
    return best


def kmeans_plus_plus(x: Array, member: NDArray[np.bool_], draws: Array) -> list[int]:
    """Draws start rows one by one: the largest squared distance so far over an Exp(1) number."""
    chosen: list[int] = []
    for draw in draws:
        best, best_chance, total = 0, -math.inf, 0.0
        for n in range(len(x)):
            before = [pair_value(x[n], x[row], "sqeuclidean") for row in chosen]
            distance = min(before, default=1.0) if member[n] else 0.0
            total += distance
            if distance / draw[n] > best_chance:
                best, best_chance = n, distance / draw[n]
        chosen.append(best if total > 0 or not chosen else chosen[0])
    return chosen


def kmeans(x: Array, init: Array, iterations: int) -> tuple[Integers, Array]:
    """Lloyd's iteration from given centroids; an empty cluster keeps its centroid."""
    centroids = np.array(init, dtype=np.float64)
    for _ in range(iterations):
        assignment = [nearest(point, centroids) for point in x]
        for k in range(len(centroids)):
            members = [x[n] for n in range(len(x)) if assignment[n] == k]
            if members:
                centroids[k] = sum(members) / len(members)
    return np.array([nearest(point, centroids) for point in x]), centroids


def kam_weights(members: Array, sigma: float, ridge: float) -> Array:
    """Solves the kernel associative memory W = X (K + ridge I)^-1; one row per member."""
    size = len(members)
    gram = np.zeros((size, size))
    for a in range(size):
        for b in range(size):
            distance = pair_value(members[a], members[b], "sqeuclidean")
            gram[a, b] = math.exp(-distance / (2 * sigma * sigma))
        gram[a, a] += ridge
    return np.linalg.inv(gram).T @ members


def rbf_synthesis(
    anchors: Array,
    members: Array,
    assignment: Integers,
    num_clusters: int,
    sigma: float,
    weights: str = "kam",
    ridge: float = 1e-4,
    anchor_ids: Ids = None,
    member_ids: Ids = None,
) -> tuple[Array, NDArray[np.bool_]]:
    """Builds one vector per anchor and cluster; a cluster without members is invalid and zero."""
    vectors = np.zeros((len(anchors), num_clusters, anchors.shape[1]))
    valid = np.zeros((len(anchors), num_clusters), dtype=bool)
    for i, anchor in enumerate(anchors):
        own = assignment if assignment.ndim == 1 else assignment[i]
        for k in range(num_clusters):
            cluster = [n for n in range(len(members)) if own[n] == k]
            kept = [
                position
                for position, n in enumerate(cluster)
                if anchor_ids is None or member_ids is None or anchor_ids[i] != member_ids[n]
            ]
            if not kept:
                continue
            rows = members[cluster]
            solved = kam_weights(rows, sigma, ridge) if weights == "kam" else rows
            exponents = [
                -pair_value(anchor, rows[n], "sqeuclidean") / (2 * sigma * sigma) for n in kept
            ]
            largest = max(exponents)
            total = sum(math.exp(exponent - largest) for exponent in exponents)
            for n, exponent in zip(kept, exponents, strict=True):
                vectors[i, k] += solved[n] * math.exp(exponent - largest) / total
            valid[i, k] = True
    return vectors, valid


def rbf_synthesis_cosines(anchors: Array, vectors: Array, valid: NDArray[np.bool_]) -> Array:
    """Takes the cosine of each anchor with its own valid synthetic vectors."""
    cosines = np.zeros(valid.shape)
    for i in range(valid.shape[0]):
        for k in range(valid.shape[1]):
            if valid[i, k]:
                cosines[i, k] = pair_value(anchors[i], vectors[i, k], "cosine")
    return cosines
