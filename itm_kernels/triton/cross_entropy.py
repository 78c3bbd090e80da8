"""Cross-entropy of positives against log-sum-exps of negatives, one element per pair."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit
from itm_kernels.triton._score_tiles import float_argument, log_of_one_plus


@triton.jit
def _exponents(negatives, highest, k, m, M, positive):
    at = tl.cast(k, tl.int64) * M + m
    # The difference of two logits first: it is exact if they are close.
    base = tl.load(highest + at, mask=m < M, other=0.0) - positive
    return tl.load(negatives + at, mask=m < M, other=0.0) + base


@triton.jit
def _term(exponent, highest):
    # An infinite exponent minus itself would be NaN. NaN is kept.
    same = exponent == highest
    return tl.exp(tl.where(same, 0.0, exponent) - tl.where(same, 0.0, highest))


@triton.jit
def _terms(negatives, bases, first, K, m, M, positive):
    """Return the highest exponent of a softmax, and the sum of the other terms relative to it.

    Exponents are relative to the positive, whose exponent is 0.
    """
    highest = tl.zeros_like(positive)
    for k in range(first, first + K):
        exponent = _exponents(negatives, bases, k, m, M, positive)
        highest = tl.where(exponent > highest, exponent, highest)
    left_out = highest == 0
    others = tl.where(left_out, 0.0, tl.exp(-highest))
    for k in range(first, first + K):
        exponent = _exponents(negatives, bases, k, m, M, positive)
        here = (exponent == highest) & (left_out == 0)
        others += tl.where(here, 0.0, _term(exponent, highest))
        left_out = left_out | here
    return highest, others


@jit
def _forward_kernel(
    positive,  # [M]
    negatives,  # [S, K, M]
    bases,  # [S, K, M]
    loss,  # [M]
    S,
    K,
    M,
    weight: tl.float64,
    PAIRS: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    own = tl.load(positive + m, mask=m < M, other=0.0)
    total = tl.zeros_like(own)
    for s in range(0, S):
        highest, others = _terms(negatives, bases, s * K, K, m, M, own)
        total += highest + log_of_one_plus(others)
    # An infinite positive gives NaN.
    tl.store(loss + m, float_argument(weight, own.dtype) * total + 0 * own, mask=m < M)


@jit
def _backward_kernel(
    grad,  # [M]
    positive,  # [M]
    negatives,  # [S, K, M]
    bases,  # [S, K, M]
    of_positive,  # [M]
    of_negatives,  # [S, K, M]
    grad_stride,
    S,
    K,
    M,
    weight: tl.float64,
    PAIRS: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    own = tl.load(positive + m, mask=m < M, other=0.0)
    loss_grad = tl.load(grad + m * grad_stride, mask=m < M, other=0.0)
    loss_grad *= float_argument(weight, own.dtype)
    total = tl.zeros_like(own)
    for s in range(0, S):
        highest, others = _terms(negatives, bases, s * K, K, m, M, own)
        for k in range(s * K, s * K + K):
            exponent = _exponents(negatives, bases, k, m, M, own)
            weight_here = loss_grad * (_term(exponent, highest) / (1 + others))
            tl.store(of_negatives + tl.cast(k, tl.int64) * M + m, weight_here, mask=m < M)
            total += weight_here
    tl.store(of_positive + m, -total, mask=m < M)


_PAIRS = 128


def cross_entropy_forward(
    positive: Tensor,  # [M]
    negatives: Tensor,  # [S, K, M]
    highest: Tensor,  # [S, K, M], added to negatives
    weight: float,
) -> Tensor:  # [M]
    """Return weight times the sum over sides of -log softmax of every positive `[M]`."""
    loss = torch.empty_like(positive, memory_format=torch.contiguous_format)
    _forward_kernel[(cdiv(len(positive), _PAIRS),)](
        positive.contiguous(), negatives.contiguous(), highest.contiguous(), loss,
        *negatives.shape, weight, PAIRS=_PAIRS,
    )  # fmt: skip
    return loss


def cross_entropy_backward(
    grad: Tensor,  # [M]
    positive: Tensor,  # [M]
    negatives: Tensor,  # [S, K, M]
    highest: Tensor,  # [S, K, M]
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of positives and negatives."""
    of_positive = torch.empty_like(positive, memory_format=torch.contiguous_format)
    of_negatives = torch.empty_like(negatives, memory_format=torch.contiguous_format)
    _backward_kernel[(cdiv(len(positive), _PAIRS),)](
        grad, positive.contiguous(), negatives.contiguous(), highest.contiguous(), of_positive,
        of_negatives, grad.stride(0), *negatives.shape, weight, PAIRS=_PAIRS,
    )  # fmt: skip
    return of_positive, of_negatives
