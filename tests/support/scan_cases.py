"""Options, regions and words for tests of the drop-ins of SCAN."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from compat_formulas import scan_scores
from itm_kernels.compat.scan import xattn_score_i2t, xattn_score_t2i
from oracles.batches import unit_pair

NORMS = ["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"]
AGGREGATES = ["LogSumExp", "Max", "Sum", "Mean"]
SCORES = {"t2i": xattn_score_t2i, "i2t": xattn_score_i2t}
# SCAN's recipe: smooth 9 and log-sum-exp at 6 for t2i, 4 and 5 for i2t.
LAMBDAS = {"t2i": (9.0, 6.0), "i2t": (4.0, 5.0)}
LENGTHS = [5, 4, 4, 3, 2, 1]


def options(direction: str = "t2i", norm: str = NORMS[0], aggregate: str = "LogSumExp") -> Any:
    smooth, scale = LAMBDAS[direction]
    return Namespace(
        cross_attn=direction,
        raw_feature_norm=norm,
        agg_func=aggregate,
        lambda_softmax=smooth,
        lambda_lse=scale,
        margin=0.2,
    )


def regions_and_words(
    N: int = 6, M: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Draw unit rows, 7 regions and up to 5 words, of related pairs."""
    image, text = unit_pair(7 * max(N, M), torch.float64)
    rows = (image.detach().view(-1, 7, 12)[:N], text.detach().view(-1, 7, 12)[:M, :5])
    regions, words = (x.to(dtype).requires_grad_() for x in rows)
    return regions, words


def original(opt: Any, lengths: list[int] = LENGTHS) -> Any:
    given = opt.cross_attn, opt.raw_feature_norm, opt.agg_func, opt.lambda_softmax, opt.lambda_lse
    return lambda images, captions: scan_scores(images, captions, lengths, *given)
