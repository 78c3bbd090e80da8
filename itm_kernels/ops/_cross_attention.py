"""Stacked cross attention: words against the regions that they attend to, or the reverse."""

from typing import Any, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Aggregate, Backend, Direction, FeatureNorm
from itm_kernels._policies import keeps_products
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, torch_op, wide_empty
from itm_kernels.ops._words_and_regions import Counts, checked_sets


def _forward_fake(context: Tensor, query: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    keep_products = inputs[-1]
    (N, C, _), (M, Q, _) = context.shape, query.shape
    kept = (N, C, M, Q) if keep_products else (0, 0, 0, 0)
    return wide_empty(context, N, M), wide_empty(context, *kept)


def _backward_fake(
    grad: Tensor, products: Tensor, context: Tensor, query: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return context.new_empty(context.shape), query.new_empty(query.shape)


_INPUTS = (
    "Tensor context, Tensor query, Tensor? context_counts, Tensor? query_counts, "
    "str feature_norm, float smooth, str aggregate, float scale"
)
# products [N, C, M, Q] if kept, otherwise [0, 0, 0, 0], in an order that the backend chooses: with
# them a backward pass needs no product for them.
define(
    "cross_attention_forward",
    f"({_INPUTS}, bool keep_products) -> (Tensor scores, Tensor products)",
    _forward_fake,
)
define(
    "cross_attention_backward",
    f"(Tensor grad, Tensor products, {_INPUTS}) -> (Tensor, Tensor)",
    _backward_fake,
)


class CrossAttentionFunction(torch.autograd.Function):
    """The backward pass reads kept products, or recomputes chunks of them."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        context: Tensor,
        query: Tensor,
        context_counts: Tensor | None,
        query_counts: Tensor | None,
        feature_norm: str,
        smooth: float,
        aggregate: str,
        scale: float,
    ) -> Tensor:
        inputs = context, query, context_counts, query_counts
        options = feature_norm, smooth, aggregate, scale
        keep = any(ctx.needs_input_grad) and keeps_products(context, query)
        forward = torch_op(namespace, "cross_attention_forward")
        scores, products = forward(*inputs, *options, keep)
        ctx.save_for_backward(products, *inputs)
        ctx.options = namespace, *options
        return scores

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, *options = ctx.options
        backward = torch_op(namespace, "cross_attention_backward")
        return None, *backward(grad, *ctx.saved_tensors, *options), *[None] * 6


@outside_autocast
def fused_cross_attention(
    context: Tensor,  # [N, C, D]
    query: Tensor,  # [M, Q, D]
    counts: Counts,  # [N] and [M]
    feature_norm: str,
    smooth: float,
    aggregate: str,
    scale: float,
    backend: str,
) -> Tensor:  # [N, M]
    """Compute the scores of checked arguments."""
    namespace = resolve("cross_attention", context, backend)
    options = feature_norm, smooth, aggregate, scale
    if namespace is None:
        return reference.cross_attention(context, query, *counts, *options)
    inputs = distinct(context, query, *counts)
    return CrossAttentionFunction.apply(namespace, *inputs, *options)


@public
def cross_attention(
    regions: Tensor,
    words: Tensor,
    region_counts: Tensor | None = None,
    word_counts: Tensor | None = None,
    *,
    direction: Direction = "t2i",
    feature_norm: FeatureNorm = "clipped_l2norm",
    smooth: float = 9.0,
    aggregate: Aggregate = "log_sum_exp",
    scale: float = 6.0,
    backend: Backend = "auto",
) -> Tensor:
    r"""Score every image and text by stacked cross attention.

    .. math:: c_l = \cos(e_l, \sum_r \alpha_{rl} v_r), \quad
              \alpha_{rl} = \text{softmax}_r(\lambda \bar s_{rl}), \quad s_{rl} = v_r \cdot e_l

    for the words l of a text and the regions r of an image; the score is
    :math:`\log(\sum_l e^{\mu c_l}) / \mu`, or the mean, sum or maximum over the words.
    :math:`\bar s` are the products of a region, normalised over the words. With direction "i2t",
    regions attend to words.

    The attended vectors are not formed: :math:`e_l \cdot a_l = \sum_r \alpha_{rl} s_{rl}`, and the
    Gram matrix of the regions gives :math:`|a_l|`. Pass the scores to a loss's `from_scores`.

    Args:
        regions: `[N, R, D]` region embeddings v, padded to R per image; not normalised here. SCAN's
            encoders return rows of norm 1.
        words: `[M, L, D]` word embeddings e, padded to L per text.
        region_counts: `[N]` integers from 0 to R: how many regions exist; None: all. Padded rows
            take part in nothing, whatever their values are.
        word_counts: `[M]` integers from 0 to L.
        direction: `"t2i"`: words attend to regions; `"i2t"`: regions attend to words.
        feature_norm: what is done to the products of a region over the words (of a word over the
            regions with "i2t"): `"l2norm"` divides them by their Euclidean norm plus 1e-8,
            `"clipped_l2norm"` multiplies negative ones by .1 before, `"clipped"` does only that,
            `"softmax"` is a softmax, `"none"` nothing.
        smooth: :math:`\lambda`, the inverse temperature of the attention; SCAN uses 9 for "t2i"
            and 4 for "i2t".
        aggregate: `"log_sum_exp"`, `"mean"`, `"sum"` or `"max"` over the words (regions) that
            exist.
        scale: :math:`\mu` > 0 of the log-sum-exp; SCAN uses 6 for "t2i" and 5 for "i2t".
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        Scores `[N, M]`, fp32 for fp16 and bf16 inputs. A pair with a count of 0 scores 0, without
        gradient. Among equal maxima the lowest index takes the gradient.

    Raises:
        TypeError: regions or words are not floating-point tensors, or counts are not integers.
        ValueError: shapes, devices or options do not fit, or a count on the CPU is out of range. A
            count on another device is not read; out of range, it makes the scores of its image or
            text NaN.
        RuntimeError: the requested backend cannot run here.

    Source: Lee et al., SCAN, 2018, eqs. 1 to 11, and its code for `feature_norm`.

    >>> import torch
    >>> eye = torch.eye(2)[None]
    >>> cross_attention(eye, eye, feature_norm="none", smooth=1.0, aggregate="mean")
    tensor([[0.9385]])
    """
    _checks.option("direction", direction, get_args(Direction))
    _checks.option("feature_norm", feature_norm, get_args(FeatureNorm))
    _checks.option("aggregate", aggregate, get_args(Aggregate))
    _checks.number("smooth", smooth)
    _checks.number("scale", scale, above=0)
    sets = checked_sets(regions, words, region_counts, word_counts, direction)
    found = fused_cross_attention(
        sets.context,
        sets.query,
        sets.counts,
        feature_norm,
        float(smooth),
        aggregate,
        float(scale),
        backend,
    )
    return sets.scores(found)
