"""Batches on which the package and the oracles are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oracles.pairing import Array, normalized

KINDS = ("diagonal", "captions", "repeated", "permuted", "duplicates", "integers")


class Batch(NamedTuple):
    """Embeddings of a batch and the ids that pair them, or None for the diagonal."""

    image: Array
    text: Array
    image_ids: NDArray[np.int64] | None
    text_ids: NDArray[np.int64] | None

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both embeddings as tensors."""
        return torch.tensor(self.image), torch.tensor(self.text)

    @property
    def ids(self) -> dict[str, Tensor | None]:
        """The ids as keyword arguments of the package."""
        return {
            "image_ids": None if self.image_ids is None else torch.tensor(self.image_ids),
            "text_ids": None if self.text_ids is None else torch.tensor(self.text_ids),
        }

    @property
    def oracle_ids(self) -> dict[str, NDArray[np.int64] | None]:
        """The ids as keyword arguments of an oracle."""
        return {"image_ids": self.image_ids, "text_ids": self.text_ids}


def embeddings(generator: np.random.Generator, size: int, dim: int) -> Array:
    """Draws rows around one direction, so that cosines spread over the bands of every loss."""
    centre = generator.standard_normal(dim)
    return centre + generator.standard_normal((size, dim)) * generator.uniform(0.2, 2.0, (size, 1))


def batch(kind: str, size: int, dim: int, seed: int = 0) -> Batch:
    """Draws a batch.

    ``diagonal`` has no ids; ``captions`` has five shuffled texts per image; ``repeated`` is square
    with ids drawn twice; ``permuted`` is square with shuffled texts; ``duplicates`` repeats rows
    without ids; ``integers`` holds small integers, whose dot products tie exactly.
    """
    generator = np.random.default_rng([seed, size, dim, KINDS.index(kind)])
    image, text = embeddings(generator, size, dim), embeddings(generator, size, dim)
    if kind == "captions":
        image_ids = generator.permutation(size) * 7 + 3
        text_ids = generator.permutation(np.repeat(image_ids, 5))
        return Batch(image, embeddings(generator, 5 * size, dim), image_ids, text_ids)
    if kind == "repeated":
        ids = generator.integers(0, max(1, size // 2), size) - 4
        return Batch(image, text, ids, ids.copy())
    if kind == "permuted":
        ids = np.arange(size) * 5 - 7
        return Batch(image, text, generator.permutation(ids), generator.permutation(ids))
    if kind == "duplicates":
        rows = generator.integers(0, max(1, size // 2), size)
        return Batch(image[rows], text[rows], None, None)
    if kind == "integers":
        # One coordinate is never 0, so that no row has a vanishing norm.
        image, text = (generator.integers(-1, 2, (size, dim)).astype(float) for _ in range(2))
        image[:, 0], text[:, 0] = 1.0, 1.0
    return Batch(image, text, None, None)


def non_contiguous(x: Tensor) -> Tensor:
    """Returns the same values with every other element of a wider buffer, transposed."""
    wide = torch.full((x.shape[1], 2 * x.shape[0]), torch.nan, dtype=x.dtype)
    view = wide[:, ::2].T
    view.copy_(x)
    return view


def numeric_gradient(function: Callable[[Array], Array], x: Array, step: float = 1e-6) -> Array:
    """Central finite differences of a scalar function."""
    gradient = np.zeros_like(x)
    for position in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[position] += step
        below[position] -= step
        gradient[position] = (function(above) - function(below)) / (2 * step)
    return gradient


def unit_pair(
    size: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draws unit rows of related pairs, which require a gradient."""
    generator = np.random.default_rng([seed, size])
    base = generator.standard_normal((size, 12))
    rows = (normalized(base + generator.standard_normal((size, 12))) for _ in range(2))
    image, text = (torch.tensor(x, dtype=dtype).requires_grad_() for x in rows)
    return image, text
