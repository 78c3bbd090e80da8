"""What is done to single rows and single pairs, for every reference formula."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def wide(x: Tensor) -> Tensor:
    """Return fp16 and bf16 as fp32, other precisions unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit_rows(x: Tensor) -> Tensor:
    """Scale every row to Euclidean length 1, in fp32 or better; a zero row stays zero."""
    return normalize(wide(x), dim=-1)


def paired_scores(image: Tensor, text: Tensor, positive: Tensor | None) -> Tensor:
    """Return s+ `[M]`, every text's dot product with its positive image; NaN if it has none."""
    if positive is None:
        return (wide(image) * wide(text)).sum(-1)
    scores = (wide(image)[positive.clamp_min(0)] * wide(text)).sum(-1)
    return scores.masked_fill(positive < 0, torch.nan)
