"""Max of hinges of given scores: a tile is read once and reduced both ways.

The kernel that joins the maxima finds the index among the few scores that may have it. The backward
pass writes at the saved indices and does not read the scores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._given_scores import given_scores, ids_at, pairs_by_image, positives
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._score_maxima import LAST, ScoreMaxima
from itm_kernels.triton._score_tiles import float_argument, hinge, no_key, ordered_key

_NAN_PAIR = tl.constexpr(-2)  # both indices of a pair whose loss is NaN


@triton.jit
def _highest(keys, count, width, at, mask, PARTS: tl.constexpr):
    """Return the highest of the keys `[count, width]` of every anchor, and the first part with it.

    The order of parts is that of the candidates.
    """
    none: tl.constexpr = no_key(keys.dtype.element_ty)
    best = tl.full((PARTS, at.shape[0]), none, keys.dtype.element_ty)
    which = tl.zeros((PARTS, at.shape[0]), tl.int32)
    for first in range(0, count, PARTS):
        part = first + tl.arange(0, PARTS)[:, None]
        place = keys + part.to(tl.int64) * width + at[None, :]
        key = tl.load(place, mask=(part < count) & mask[None, :], other=none)
        which = tl.where(key > best, part, which)
        best = tl.maximum(best, key)
    key = tl.max(best, 0)
    return key, tl.min(tl.where(best == key[None, :], which, LAST), 0)


@triton.jit
def _find(key, found, same, numbers, there):
    """Return the lowest number `[P]` whose score has the key, and that score."""
    hit = there & (ordered_key(found) == key[None, :]) & (same == 0)
    number = tl.min(tl.where(hit, numbers, LAST), 0)
    of_number = hit & (numbers == number[None, :])
    # One score is selected, or none. NaN times 0 would be NaN.
    value = tl.sum(tl.where(of_number, found, 0.0), 0)
    return number, tl.where(number == LAST, float("-inf"), value)


@jit(do_not_specialize=["N", "M", "R", "splits", "stripes"])
def _hinges_kernel(
    scores,  # [N, M]
    row_stride,
    column_stride,
    N,
    M,
    R,
    positive,  # [M]
    x_ids,  # [N]
    y_ids,  # [M]
    of_pair,  # [M] scores of the pairs
    row,  # [splits, R]
    row_first,  # [splits, R]
    column,  # [stripes, width]
    loss,  # [M]
    text_index,  # [M]
    image_index,  # [M]
    width,
    splits,
    stripes,
    margin: tl.float64,
    HAS_IDS: tl.constexpr,
    OF_PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
    PAIRS: tl.constexpr,
    PARTS: tl.constexpr,
):
    m = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    pairs = tl.minimum(m, M - 1)
    own = tl.load(of_pair + pairs)
    DTYPE: tl.constexpr = own.dtype
    image = tl.maximum(ids_at(positive, pairs, HAS_IDS), 0).to(tl.int32)
    anchor = pairs if OF_PAIRS else image
    key, split = _highest(row, splits, R, anchor, m < M, PARTS)
    group = tl.load(row_first + split.to(tl.int64) * R + anchor)
    t = group[None, :] + tl.arange(0, VECTOR)[:, None]
    there = t < M
    at = scores + (image.to(tl.int64) * row_stride)[None, :] + t.to(tl.int64) * column_stride
    found = tl.load(at, mask=there, other=0.0).to(DTYPE)
    texts = tl.minimum(t, M - 1)
    same = ids_at(x_ids, image, HAS_IDS)[None, :] == ids_at(y_ids, texts, HAS_IDS)
    best_text, text_score = _find(key, found, same, t, there)
    key, stripe = _highest(column, stripes, width, pairs, m < M, PARTS)
    k = (stripe * ROWS)[None, :] + tl.arange(0, ROWS)[:, None]
    there = k < N
    at = scores + k.to(tl.int64) * row_stride + (pairs.to(tl.int64) * column_stride)[None, :]
    found = tl.load(at, mask=there, other=0.0).to(DTYPE)
    images = tl.minimum(k, N - 1)
    same = ids_at(x_ids, images, HAS_IDS) == ids_at(y_ids, pairs, HAS_IDS)[None, :]
    best_image, image_score = _find(key, found, same, k, there)
    alpha = float_argument(margin, DTYPE)
    of_text, of_image = hinge(alpha + text_score - own), hinge(alpha + image_score - own)
    value = of_text + of_image + 0 * own
    nan = value != value
    best_text = tl.where(nan, _NAN_PAIR, tl.where(of_text != 0, best_text, -1))
    best_image = tl.where(nan, _NAN_PAIR, tl.where(of_image != 0, best_image, -1))
    tl.store(loss + m, value, mask=m < M)
    tl.store(text_index + m, best_text.to(tl.int64), mask=m < M)
    tl.store(image_index + m, best_image.to(tl.int64), mask=m < M)


def max_of_hinges_from_scores_forward(
    scores: Tensor,  # [N, M]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
    margin: float,
    semihard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [M], [M], [M]
    """Return the loss of every pair, and the indices of its negatives with a positive hinge."""
    given = given_scores(scores)
    own = positives(given, positive)
    has_ids = positive is not None
    pairs = tuple(own if t is None else t.contiguous() for t in (positive, image_ids, text_ids))
    # An image has any number of pairs, and a bound for each: its row is read once per pair.
    of_pairs = has_ids and semihard
    if of_pairs:
        rows = ScoreMaxima(given, pairs, own, bounded=True, of_pairs=True, of_columns=False)
        columns = ScoreMaxima(given, pairs, own, bounded=True, of_pairs=False, of_rows=False)
    else:
        rows = columns = ScoreMaxima(given, pairs, own, bounded=semihard, of_pairs=False)
    loss, M = torch.empty_like(own), given.M
    text_index, image_index = (
        torch.empty(M, dtype=torch.int64, device=scores.device) for _ in range(2)
    )
    _hinges_kernel[(cdiv(M, 32),)](
        *given, rows.R, *pairs, own, rows.row, rows.first, columns.column, loss, text_index,
        image_index, columns.column.shape[1], rows.cut.splits, columns.cut.stripes, margin,
        HAS_IDS=has_ids, OF_PAIRS=of_pairs, ROWS=columns.cut.rows, VECTOR=rows.cut.vector,
        PAIRS=32, PARTS=64,
    )  # fmt: skip
    return loss, text_index, image_index


@triton.jit
def _weight_at(i, t, grad, text_index, image_index, order, starts, mask, HAS_IDS: tl.constexpr):
    """Return the gradient of the scores of images i with texts t, which are no pairs.

    All pairs of the image may have the text as their negative, and the text's pair the image.
    """
    value = tl.load(grad + t, mask=mask, other=0.0)
    value = tl.where(tl.load(image_index + t, mask=mask, other=-1) == i, value, 0.0)
    first, count, most = i, mask.to(tl.int32), 1
    if HAS_IDS:
        first = tl.load(starts + i, mask=mask, other=0).to(tl.int32)
        count = tl.load(starts + i + 1, mask=mask, other=0).to(tl.int32) - first
        most = tl.max(count, 0)
    for k in range(0, most):
        pair, there = first + k, mask & (k < count)
        if HAS_IDS:
            pair = tl.load(order + pair, mask=there, other=0).to(tl.int32)
        hit = there & (tl.load(text_index + pair, mask=there, other=-1) == t)
        value += tl.load(grad + pair, mask=hit, other=0.0)
    return value


@jit(do_not_specialize=["M"])
def _gradient_kernel(
    grad,  # [M]
    positive,  # [M]
    text_index,  # [M]
    image_index,  # [M]
    order,  # [M] pairs sorted by image
    starts,  # [N + 1]
    grad_scores,  # [N, M], of zeros
    M,
    HAS_IDS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    m = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    mask = m < M
    i = m
    if HAS_IDS:
        i = tl.load(positive + m, mask=mask, other=-1).to(tl.int32)
    # 64-bit indices spill on sm_100.
    t = tl.load(text_index + m, mask=mask, other=-1).to(tl.int32)
    k = tl.load(image_index + m, mask=mask, other=-1).to(tl.int32)
    mask &= i >= 0
    dtype: tl.constexpr = grad_scores.dtype.element_ty
    active = (t >= 0).to(tl.int32) + (k >= 0).to(tl.int32)
    value = -tl.load(grad + m, mask=mask, other=0.0) * active
    value = tl.where(t == _NAN_PAIR, float("nan"), value)
    tl.store(grad_scores + i.to(tl.int64) * M + m, value.to(dtype), mask=mask)
    # Several pairs may write the same value at the same place.
    hit = mask & (t >= 0)
    value = _weight_at(i, t, grad, text_index, image_index, order, starts, hit, HAS_IDS)
    tl.store(grad_scores + i.to(tl.int64) * M + t, value.to(dtype), mask=hit)
    hit = mask & (k >= 0)
    value = _weight_at(k, m, grad, text_index, image_index, order, starts, hit, HAS_IDS)
    tl.store(grad_scores + k.to(tl.int64) * M + m, value.to(dtype), mask=hit)


def max_of_hinges_from_scores_backward(
    grad: Tensor,  # [M]
    positive: Tensor | None,  # [M]
    text_index: Tensor,  # [M]
    image_index: Tensor,  # [M]
    N: int,
    dtype: torch.dtype,
) -> Tensor:  # [N, M]
    """Return the gradient of the scores, which is zero but for three of every pair."""
    M = grad.shape[0]
    grad_scores = torch.zeros((N, M), dtype=dtype, device=grad.device)
    grad, text_index, image_index = (t.contiguous() for t in (grad, text_index, image_index))
    order, starts = (grad, grad) if positive is None else pairs_by_image(positive, N)
    _gradient_kernel[(cdiv(M, 128),)](
        grad, grad if positive is None else positive.contiguous(), text_index, image_index, order,
        starts, grad_scores, M, HAS_IDS=positive is not None, PAIRS=128,
    )  # fmt: skip
    return grad_scores
