"""Row and column log-sum-exp of a scaled score matrix that is never stored."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend
from itm_kernels._policies import NORMALISES_ROWS, keeps_scores
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import (
    define,
    distinct,
    scores_empty,
    torch_op,
    wide_empty,
)


class LogSumExp(NamedTuple):
    """Log-sum-exp of every row and of every column."""

    row: Tensor  # [N]
    column: Tensor  # [M]


class RelativeSums(NamedTuple):
    """Log-sum-exp relative to the highest logits, and the logits of positives.

    For logits in the thousands, a single log-sum-exp loses the digits that determine a loss. The
    difference of two logits is exact, and the logarithm that is added to it is small.
    """

    row: Tensor  # [N] log-sum-exp - highest, -inf for an empty sum
    column: Tensor  # [M]
    positive: Tensor  # [M] as they enter the sums; [0] if not requested
    row_highest: Tensor  # [N] without gradient; 0 where it is not finite
    column_highest: Tensor  # [M]


def _forward_fake(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    positive: Tensor | None,
    cosine: bool,
    keep_scores: bool,
) -> tuple[Tensor, ...]:
    row, column = (wide_empty(t, t.shape[0]) for t in (x, y))
    positive_logits = wide_empty(y, 0 if positive is None else y.shape[0])
    scores = scores_empty(keep_scores, x, y)
    return row, column, positive_logits, torch.empty_like(row), torch.empty_like(column), scores


def _backward_fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, y, scale = inputs[8:11]  # after three gradients, four sums and scores
    return x.new_empty(x.shape), y.new_empty(y.shape), scale.new_empty(scale.shape)


_INPUTS = (
    "Tensor x, Tensor y, Tensor scale, Tensor? x_ids, Tensor? y_ids, Tensor? positive, bool cosine"
)
# cosine: scores are cosines of rows of any norm, for backends in `_policies.NORMALISES_ROWS`.
# scores [N, M] if kept, otherwise [0, 0]: with them a backward pass needs no product for scores.
define(
    "log_sum_exp_forward",
    f"({_INPUTS}, bool keep_scores) -> (Tensor row, Tensor column, Tensor positive_logits, "
    "Tensor row_highest, Tensor column_highest, Tensor scores)",
    _forward_fake,
)
define(
    "log_sum_exp_backward",
    "(Tensor grad_row, Tensor grad_column, Tensor grad_positive, Tensor row, Tensor column, "
    f"Tensor row_highest, Tensor column_highest, Tensor scores, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor)",
    _backward_fake,
)


class LogSumExpFunction(torch.autograd.Function):
    """Recomputes tiles of softmax from the saved log-sum-exp in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        x_ids: Tensor | None,
        y_ids: Tensor | None,
        positive: Tensor | None,
        cosine: bool,
    ) -> tuple[Tensor, ...]:
        inputs = x, y, scale, x_ids, y_ids, positive
        keep = any(ctx.needs_input_grad) and keeps_scores(namespace, x, y)
        *sums, scores = torch_op(namespace, "log_sum_exp_forward")(*inputs, cosine, keep)
        row, column, positive_logits, row_highest, column_highest = sums
        ctx.mark_non_differentiable(row_highest, column_highest)
        ctx.set_materialize_grads(False)  # zeros for unused outputs would cost launches
        ctx.save_for_backward(row, column, row_highest, column_highest, scores, *inputs)
        ctx.options = namespace, cosine
        return row, column, positive_logits, row_highest, column_highest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        namespace, cosine = ctx.options
        backward = torch_op(namespace, "log_sum_exp_backward")
        grad_row, grad_column, grad_positive, _, _ = grads
        saved = ctx.saved_tensors
        grads_of_sums = [
            torch.zeros_like(like) if grad is None else grad
            for grad, like in ((grad_row, saved[0]), (grad_column, saved[1]))
        ]
        if grad_positive is None:  # not requested, or not used
            like = saved[1]
            grad_positive = like.new_empty(0) if saved[-1] is None else torch.zeros_like(like)
        grads_of_inputs = backward(*grads_of_sums, grad_positive, *saved, cosine)
        return None, *grads_of_inputs, None, None, None, None


@outside_autocast
def fused_log_sum_exp(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    scale: Tensor,  # []
    x_ids: Tensor | None,
    y_ids: Tensor | None,
    backend: str,
    positive: Tensor | None = None,  # [M] row of x with the same id, -1 for none
    cosine: bool = False,  # scores are cosines of rows of any norm: if `normalises_rows`
) -> RelativeSums:
    """Compute `log_sum_exp` of checked arguments, relative to the highest logits."""
    namespace = _resolve(x, y, backend)
    if namespace is None:
        return RelativeSums(*reference.log_sum_exp(x, y, scale, x_ids, y_ids, positive))
    inputs = distinct(x, y, scale, x_ids, y_ids, positive)
    return RelativeSums(*LogSumExpFunction.apply(namespace, *inputs, cosine))


def normalises_rows(x: Tensor, y: Tensor, backend: str) -> bool:
    """Return whether the backend that runs computes cosines of rows of any norm."""
    return _resolve(x, y, backend) in NORMALISES_ROWS


def _resolve(x: Tensor, y: Tensor, backend: str) -> str | None:
    return resolve("log_sum_exp", x, backend, (x.shape[0], y.shape[0]))


def as_scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a scale or bias as a 0-dimensional tensor in the precision of the scores."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(value, Tensor):
        return value.reshape(()).to(like.device, dtype)
    return torch.full((), float(value), dtype=dtype, device=like.device)


@public
def log_sum_exp(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    *,
    x_ids: Tensor | None = None,
    y_ids: Tensor | None = None,
    backend: Backend = "auto",
) -> LogSumExp:
    r"""Return the log-sum-exp of every row and column of the scaled dot products of x and y.

    .. math:: r_n = \log \sum_m e^{\text{scale} \, x_n \cdot y_m}, \quad
              c_m = \log \sum_n e^{\text{scale} \, x_n \cdot y_m}

    Args:
        x: `[N, D]`, floating point, not normalised.
        y: `[M, D]`.
        scale: a number or a tensor of one element (differentiable); 1 / temperature.
        x_ids: `[N]` integers. With ids, pairs that share one are excluded from both sums, also
            positives: a loss adds its positive again with `torch.logaddexp`.
        y_ids: `[M]` integers.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `LogSumExp(row [N], column [M])`, fp32 for fp16 and bf16 inputs; -inf for an empty sum.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: invalid shapes, devices, scale or ids.
        RuntimeError: the requested backend cannot run here.

    >>> import torch
    >>> log_sum_exp(torch.eye(2), torch.eye(2), 2.0).row
    tensor([2.1269, 2.1269])
    """
    x, y = _checks.embeddings(x=x, y=y)
    _checks.scalar("scale", scale)
    ids = _checks.id_pair(("x_ids", "y_ids"), (x_ids, y_ids), (x, y))
    found = fused_log_sum_exp(x, y, as_scalar(scale, x), *ids, backend)
    return LogSumExp(found.row + found.row_highest, found.column + found.column_highest)
