"""Scores of the hardest negatives: the maxima of the tiles, computed again in input precision."""

import torch
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._coo_entries import entries_empty, set_entry, set_own
from itm_kernels.triton._hardest import hardest
from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._operands import contiguous_rows, wide_dtype
from itm_kernels.triton._score_tiles import paired_scores
from itm_kernels.triton._segment_sum import segment_sum
from itm_kernels.triton._tile_maxima import TileMaxima, maximum_over_tiles


@jit
def _candidate_scores_kernel(
    anchor_rows,  # [A, D]
    other_rows,
    key,  # [tiles, A]
    index,
    score,  # [A]
    candidate,  # [A]
    anchor_stride,
    other_stride,
    A,
    D,
    tiles,
    ANCHORS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
):
    a = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    at = tl.minimum(a, A - 1)
    found = maximum_over_tiles(key, index, tiles, A, at, TILES)
    scores = paired_scores(
        anchor_rows, other_rows, anchor_stride, other_stride, D, at, tl.maximum(found, 0), DEPTH
    )
    tl.store(score + a, tl.where(found >= 0, scores, float("-inf")), mask=a < A)
    tl.store(candidate + a, found.to(tl.int64), mask=a < A)


@jit
def _positives_kernel(
    image,
    text,
    positive,
    score,  # [M]
    image_stride,
    text_stride,
    M,
    D,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
):
    m = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    j = tl.minimum(m, M - 1)
    i = j.to(tl.int64)
    if HAS_POSITIVE:
        i = tl.load(positive + j)
    scores = paired_scores(image, text, image_stride, text_stride, D, tl.maximum(i, 0), j, DEPTH)
    tl.store(score + m, tl.where(i >= 0, scores, float("nan")), mask=m < M)


def _candidate_scores(
    anchor_rows: Tensor, other_rows: Tensor, best: TileMaxima
) -> tuple[Tensor, Tensor]:
    A, D = anchor_rows.shape
    score = torch.empty(A, dtype=wide_dtype(anchor_rows), device=anchor_rows.device)
    candidate = torch.empty(A, dtype=torch.int64, device=anchor_rows.device)
    _candidate_scores_kernel[(cdiv(A, 16),)](
        anchor_rows, other_rows, best.key, best.candidate, score, candidate,
        anchor_rows.stride(0), other_rows.stride(0), A, D, best.key.shape[0],
        ANCHORS=16, DEPTH=128, TILES=16,
    )  # fmt: skip
    return score, candidate


def hardest_negatives_forward(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    positive: Tensor | None,  # [M]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return s+ `[M]`, the hardest text per image `[N]` and the hardest image per text `[M]`."""
    best_text, best_image = hardest(image, text, positive, image_ids, text_ids, semihard=False)
    image, text = contiguous_rows(image), contiguous_rows(text)
    M, D = text.shape
    score = torch.empty(M, dtype=wide_dtype(text), device=text.device)
    _positives_kernel[(cdiv(M, 16),)](
        image, text, image if positive is None else positive.contiguous(), score,
        image.stride(0), text.stride(0), M, D,
        PAIRS=16, DEPTH=128, HAS_POSITIVE=positive is not None,
    )  # fmt: skip
    return (
        score,
        *_candidate_scores(image, text, best_text),
        *_candidate_scores(text, image, best_image),
    )


@jit
def _entries_kernel(
    grad_positive,  # [M]
    grad_text,  # [N]
    grad_image,  # [M]
    positive,  # [M]
    text_index,  # [N]
    image_index,  # [M]
    key,
    source,
    weight,
    own_source,
    own_weight,
    first,
    end,
    positive_stride,
    text_stride,
    image_stride,
    N,
    M,
    ROWS: tl.constexpr,
    HAS_POSITIVE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(first + n, tl.zeros_like(n).to(first.dtype.element_ty), mask=n < N + M)
    tl.store(end + n, tl.zeros_like(n).to(end.dtype.element_ty), mask=n < N + M)
    none = tl.cast(N, tl.int64) + M
    # The scores of a text with its hardest image and with its positive.
    of_text = n < M
    k = tl.load(image_index + n, mask=of_text, other=-1)
    of_image = tl.load(grad_image + n * image_stride, mask=of_text, other=0.0)
    of_pair = tl.load(grad_positive + n * positive_stride, mask=of_text, other=0.0)
    own = n
    if HAS_POSITIVE:
        own = tl.load(positive + n, mask=of_text, other=-1)
    set_entry(key, source, weight, n, tl.where(k >= 0, k, none), n, of_image, of_text)
    set_own(own_source, own_weight, N + n, 0, k, of_image, of_text)
    set_own(own_source, own_weight, N + n, 1, own, of_pair, of_text)
    last = n + M
    if HAS_POSITIVE:
        set_entry(key, source, weight, last, tl.where(own >= 0, own, none), n, of_pair, of_text)
        last += M
    # The score of an image with its hardest text.
    mask = n < N
    t = tl.load(text_index + n, mask=mask, other=-1)
    text_grad = tl.load(grad_text + n * text_stride, mask=mask, other=0.0)
    set_entry(key, source, weight, last, tl.where(t >= 0, N + t, none), n, text_grad, mask)
    set_own(own_source, own_weight, n, 0, t, text_grad, mask)
    paired = n
    if HAS_POSITIVE:
        paired = tl.full(n.shape, -1, tl.int64)
    set_own(own_source, own_weight, n, 1, paired, of_pair, mask)


def hardest_negatives_backward(
    grad_positive: Tensor,  # [M]
    grad_text: Tensor,  # [N]
    grad_image: Tensor,  # [M]
    image: Tensor,
    text: Tensor,
    positive: Tensor | None,
    text_index: Tensor,  # [N]
    image_index: Tensor,  # [M]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and text from the saved indices."""
    N, M = image.shape[0], text.shape[0]
    entries = entries_empty(image, N, M, M if positive is None else 2 * M, N)
    grads = grad_positive, grad_text, grad_image
    _entries_kernel[(cdiv(N + M, 128),)](
        *grads, text_index if positive is None else positive.contiguous(),
        text_index.contiguous(), image_index.contiguous(), **entries.arguments(),
        **{f"{name}_stride": grad.stride(0) for name, grad in
           zip(("positive", "text", "image"), grads, strict=True)},
        N=N, M=M, ROWS=128, HAS_POSITIVE=positive is not None,
    )  # fmt: skip
    return segment_sum(entries, image, text)
