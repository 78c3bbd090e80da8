"""Seeded random rows and ids for tests of operators."""

import torch
from torch import Tensor

LOW_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32)


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normally distributed numbers, the same in every precision but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def whole(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, most: int = 3) -> Tensor:
    """Return small integers: their products are exact in every precision, and tie often."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)


def ids(size: int, groups: int, seed: int) -> Tensor:
    """Return ids drawn from a number of groups."""
    return torch.randint(groups, (size,), generator=torch.Generator().manual_seed(seed))
