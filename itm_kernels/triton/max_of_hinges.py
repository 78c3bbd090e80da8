"""Max of hinges: the hardest negatives are scored again, and the loss of a pair is written once.

The gradient is a sum of gathered rows: every active hinge contributes to its anchor, its negative
and its positive.
"""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._coo_entries import entries_empty, set_entry, set_own
from itm_kernels.triton._hardest import hardest
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import contiguous_rows, wide_dtype
from itm_kernels.triton._score_tiles import float_argument, hinge, paired_scores, wide_type
from itm_kernels.triton._segment_sum import segment_sum
from itm_kernels.triton._tile_maxima import maximum_over_tiles

# Replaces both indices of a pair whose loss is NaN: the gradient of its two rows is NaN, even if
# the hardest negatives are finite.
_NAN_PAIR = tl.constexpr(-2)


@jit
def _hinges_kernel(
    image,
    text,
    positive,  # [M]
    text_key,
    text_index,
    image_key,
    image_index,
    loss,  # [M]
    hardest_text,  # [M]
    hardest_image,  # [M]
    image_stride,
    text_stride,
    M,
    D,
    anchors,  # rows that have a hardest text: N, or M pairs
    text_tiles,
    image_tiles,
    margin: tl.float64,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
    OF_PAIRS: tl.constexpr,
):
    m = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    j = tl.minimum(m, M - 1)
    i = j.to(tl.int64)
    if HAS_POSITIVE:
        i = tl.load(positive + j)
    matched = i >= 0
    i = tl.maximum(i, 0)
    anchor = i
    if OF_PAIRS:
        anchor = j.to(tl.int64)
    t = maximum_over_tiles(text_key, text_index, text_tiles, anchors, anchor, TILES)
    k = maximum_over_tiles(image_key, image_index, image_tiles, M, j, TILES)
    own = paired_scores(image, text, image_stride, text_stride, D, i, j, DEPTH)
    own = tl.where(matched, own, float("nan"))
    of_text = paired_scores(image, text, image_stride, text_stride, D, i, tl.maximum(t, 0), DEPTH)
    of_image = paired_scores(image, text, image_stride, text_stride, D, tl.maximum(k, 0), j, DEPTH)
    offset = float_argument(margin, wide_type(image.dtype)) - own
    a = tl.where(t >= 0, hinge(offset + of_text), 0.0)
    b = tl.where(k >= 0, hinge(offset + of_image), 0.0)
    # + 0 s: a pair without negatives has no other term that propagates NaN.
    both = a + b + 0 * own
    tl.store(loss + m, both, mask=m < M)
    t = tl.where(both == both, tl.where(a != 0, t, -1), _NAN_PAIR)
    k = tl.where(both == both, tl.where(b != 0, k, -1), _NAN_PAIR)
    tl.store(hardest_text + m, t.to(tl.int64), mask=m < M)
    tl.store(hardest_image + m, k.to(tl.int64), mask=m < M)


def max_of_hinges_forward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    margin: float,
    semihard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [M], [M], [M]
    """Return every pair's loss, and its hardest text and image where their hinge is active."""
    best_text, best_image = hardest(image, text, positive, image_ids, text_ids, semihard)
    M, D = text.shape
    image, text = contiguous_rows(image), contiguous_rows(text)
    loss = torch.empty(M, dtype=wide_dtype(text), device=text.device)
    hardest_text = torch.empty(M, dtype=torch.int64, device=text.device)
    hardest_image = torch.empty_like(hardest_text)
    _hinges_kernel[(cdiv(M, 16),)](
        image=image, text=text, positive=image if positive is None else positive.contiguous(),
        **best_text.arguments("text"), **best_image.arguments("image"),
        loss=loss, hardest_text=hardest_text, hardest_image=hardest_image,
        image_stride=image.stride(0), text_stride=text.stride(0), M=M, D=D,
        anchors=best_text.key.shape[1], margin=margin, PAIRS=16, DEPTH=128, TILES=16,
        HAS_POSITIVE=positive is not None, OF_PAIRS=semihard,
    )  # fmt: skip
    return loss, hardest_text, hardest_image


@jit
def _entries_kernel(
    grad,  # [M]
    positive,  # [M]
    text_index,  # [M]
    image_index,  # [M]
    key,
    source,
    weight,
    own_source,
    own_weight,
    first,
    end,
    grad_stride,
    N,
    M,
    PAIRS: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    tl.store(first + m, tl.zeros_like(m).to(first.dtype.element_ty), mask=m < N + M)
    tl.store(end + m, tl.zeros_like(m).to(end.dtype.element_ty), mask=m < N + M)
    mask = m < M
    pair_grad = tl.load(grad + m * grad_stride, mask=mask, other=0.0).to(weight.dtype.element_ty)
    t = tl.load(text_index + m, mask=mask, other=-1)
    k = tl.load(image_index + m, mask=mask, other=-1)
    own = m
    if HAS_POSITIVE:
        own = tl.load(positive + m, mask=mask, other=-1)
    hinges = (t >= 0).to(tl.int32) + (k >= 0).to(tl.int32)
    nan = t == _NAN_PAIR
    own_grad = tl.where(nan, float("nan"), -pair_grad * hinges)
    has_own = ((hinges > 0) | nan) & (own >= 0)
    none = tl.cast(N, tl.int64) + M
    hit = (t >= 0) & (own >= 0)
    # The mined image receives the text of the pair, the mined text its image.
    set_entry(key, source, weight, m, tl.where(k >= 0, k, none), m, pair_grad, mask)
    last = m + M
    if HAS_POSITIVE:
        last += 2 * tl.cast(M, tl.int64)
    set_entry(key, source, weight, last, tl.where(hit, N + t, none), own, pair_grad, mask)
    set_own(own_source, own_weight, N + m, 0, k, pair_grad, mask)
    set_own(own_source, own_weight, N + m, 1, tl.where(has_own, own, -1), own_grad, mask)
    if HAS_POSITIVE:
        # An image has any number of pairs: their contributions to it are sorted as well.
        e = m + M
        set_entry(key, source, weight, e, tl.where(has_own, own, none), m, own_grad, mask)
        set_entry(key, source, weight, e + M, tl.where(hit, own, none), t, pair_grad, mask)
        nothing = tl.full(m.shape, -1, tl.int64)
        set_own(own_source, own_weight, m, 0, nothing, pair_grad, m < N)
        set_own(own_source, own_weight, m, 1, nothing, pair_grad, m < N)
    else:
        set_own(own_source, own_weight, m, 0, t, pair_grad, mask)
        set_own(own_source, own_weight, m, 1, tl.where(has_own, m, -1), own_grad, mask)


def max_of_hinges_backward(
    grad: Tensor,  # [M]
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    text_index: Tensor,  # [M]
    image_index: Tensor,  # [M]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and text from the saved indices."""
    N, M = image.shape[0], text.shape[0]
    entries = entries_empty(image, N, M, M if positive is None else 3 * M, M)
    _entries_kernel[(cdiv(N + M, 128),)](
        grad, text_index if positive is None else positive.contiguous(),
        text_index.contiguous(), image_index.contiguous(), **entries.arguments(),
        grad_stride=grad.stride(0), N=N, M=M, PAIRS=128, HAS_POSITIVE=positive is not None,
    )  # fmt: skip
    return segment_sum(entries, image, text)
