"""Late interaction (MaxSim): the best match of every word among the regions, or the reverse."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend, Direction, flag
from itm_kernels._policies import keeps_winners
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, torch_op, wide_empty
from itm_kernels.ops._words_and_regions import Counts, checked_sets

Reduce = Literal["mean", "sum"]


def _forward_fake(
    context: Tensor,
    query: Tensor,
    context_counts: Tensor | None,
    query_counts: Tensor | None,
    mean: bool,
    cosine: bool,
    keep_winners: bool,
) -> tuple[Tensor, Tensor]:
    N, (M, Q, _) = context.shape[0], query.shape
    kept = (N, M, Q) if keep_winners else (0, 0, 0)
    return wide_empty(context, N, M), context.new_empty(kept, dtype=torch.int16)


def _backward_fake(
    grad: Tensor, winners: Tensor, context: Tensor, query: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return context.new_empty(context.shape), query.new_empty(query.shape)


_INPUTS = (
    "Tensor context, Tensor query, Tensor? context_counts, Tensor? query_counts, "
    "bool mean, bool cosine"
)
# cosine: rows are scaled to norm 1 by the kernels, which know the padded ones.
# winners [N, M, Q] if kept, otherwise [0, 0, 0]: the context row with the maximum, -1 for none.
define(
    "late_interaction_forward",
    f"({_INPUTS}, bool keep_winners) -> (Tensor scores, Tensor winners)",
    _forward_fake,
)
define(
    "late_interaction_backward",
    f"(Tensor grad, Tensor winners, {_INPUTS}) -> (Tensor, Tensor)",
    _backward_fake,
)


class LateInteractionFunction(torch.autograd.Function):
    """The backward pass reads kept winners, or recomputes chunks of products."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        context: Tensor,
        query: Tensor,
        context_counts: Tensor | None,
        query_counts: Tensor | None,
        mean: bool,
        cosine: bool,
    ) -> Tensor:
        inputs = context, query, context_counts, query_counts
        keep = any(ctx.needs_input_grad) and keeps_winners(context, query)
        forward = torch_op(namespace, "late_interaction_forward")
        scores, winners = forward(*inputs, mean, cosine, keep)
        ctx.save_for_backward(winners, *inputs)
        ctx.options = namespace, mean, cosine
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, *options = ctx.options
        backward = torch_op(namespace, "late_interaction_backward")
        return None, *backward(grad, *ctx.saved_tensors, *options), None, None, None, None


@outside_autocast
def fused_late_interaction(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    counts: Counts,  # [N] and [M]
    mean: bool,
    cosine: bool,
    backend: str,
) -> Tensor:  # [N, M]
    """Compute the scores of checked arguments."""
    namespace = resolve("late_interaction", context, backend)
    if namespace is None:
        return reference.late_interaction(context, query, *counts, mean, cosine)
    inputs = distinct(context, query, *counts)
    return LateInteractionFunction.apply(namespace, *inputs, mean, cosine)


@public
def late_interaction(
    regions: Tensor,
    words: Tensor,
    region_counts: Tensor | None = None,
    word_counts: Tensor | None = None,
    *,
    direction: Direction = "t2i",
    reduce: Reduce = "mean",
    normalize: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    r"""Score every image and text by the best match of every word, or of every region.

    .. math:: s^{t2i}_{ij} = \frac{1}{L_j} \sum_l \max_r v_{ir} \cdot e_{jl}, \quad
              s^{i2t}_{ij} = \frac{1}{R_i} \sum_r \max_l v_{ir} \cdot e_{jl}

    The products of all regions and words are never stored. Pass the scores to a loss's
    `from_scores`.

    Args:
        regions: `[N, R, D]` region or patch embeddings v, padded to R per image.
        words: `[M, L, D]` word or token embeddings e, padded to L per text.
        region_counts: `[N]` integers from 0 to R: how many regions exist; None: all. Padded rows
            take part in nothing, whatever their values are.
        word_counts: `[M]` integers from 0 to L.
        direction: `"t2i"`, the best region of every word, or `"i2t"`, the best word of every
            region. FILIP uses the mean of both scores, ColBERT "t2i".
        reduce: `"mean"` over the words (regions) that exist, as FILIP, or `"sum"`, as ColBERT.
        normalize: scale every row to norm 1 first; a zero row stays zero, without gradient.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        Scores `[N, M]`, fp32 for fp16 and bf16 inputs. A pair with a count of 0 scores 0, without
        gradient. Among equal matches the lowest index takes the gradient.

    Raises:
        TypeError: regions or words are not floating-point tensors, or counts are not integers.
        ValueError: shapes, devices or options do not fit, or a count on the CPU is out of range. A
            count on another device is not read; out of range, it makes the scores of its image or
            text NaN.
        RuntimeError: the requested backend cannot run here.

    Source: Khattab and Zaharia, ColBERT, 2020, eq. 3; Yao et al., FILIP, 2022, eqs. 3 to 6.

    >>> import torch
    >>> regions = torch.eye(3)[None]
    >>> words = torch.tensor([[[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]]])
    >>> late_interaction(regions, words)
    tensor([[0.9000]])
    """
    _checks.option("direction", direction, get_args(Direction))
    _checks.option("reduce", reduce, get_args(Reduce))
    sets = checked_sets(regions, words, region_counts, word_counts, direction)
    mean, cosine = reduce == "mean", flag("normalize", normalize)
    found = fused_late_interaction(sets.context, sets.query, sets.counts, mean, cosine, backend)
    return sets.scores(found)
