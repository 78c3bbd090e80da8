"""Cross-entropies of the pairs on the diagonal as one autograd function, from rows of any norm.

It runs the operators of `unit_rows`, `log_sum_exp` and `cross_entropy`, with identical results. As
separate autograd functions, four of them and the views between them take longer than the loss of a
small batch in eager PyTorch.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels._autocast import outside_autocast
from itm_kernels._policies import NORMALISES_ROWS, keeps_scores
from itm_kernels.backends import resolve
from itm_kernels.ops._define import distinct, torch_op
from itm_kernels.ops._unit_rows import UnitSides


class PairEntropyFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        weight: float,
        unit: bool,
    ) -> Tensor:
        saved: tuple[Tensor, ...] = ()
        cosine = not unit and namespace in NORMALISES_ROWS
        if not (unit or cosine):
            saved = UnitSides.forward(namespace, image, text)
            image, text = saved[2:4]
        own = torch.arange(image.shape[0], device=image.device)
        inputs = image, text, scale, own, own, own, cosine
        keep = any(ctx.needs_input_grad) and keeps_scores(namespace, image, text)
        found = torch_op(namespace, "log_sum_exp_forward")(*inputs, keep)
        row, column, positive, row_highest, column_highest, scores = found
        sums = row, column, row_highest, column_highest, scores
        both = torch.stack((row, column, row_highest, column_highest)).view(2, 2, 1, -1)
        entropy = positive, *both.unbind()
        ctx.save_for_backward(*entropy, *sums, image, text, scale, own, *saved)
        ctx.options = namespace, weight, cosine
        return torch_op(namespace, "cross_entropy_forward")(*entropy, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, weight, cosine = ctx.options
        entropy, sums, others = (ctx.saved_tensors[i:k] for i, k in ((0, 3), (3, 8), (8, None)))
        sides, (scale, own), saved = others[:2], others[2:4], others[4:]
        if saved:
            sides = UnitSides.rows(namespace, saved)
        backward = torch_op(namespace, "cross_entropy_backward")
        grad_positive, grad_sums = backward(grad, *entropy, weight)
        grads = *grad_sums.view(2, -1).unbind(), grad_positive
        *grad_sides, grad_scale = torch_op(namespace, "log_sum_exp_backward")(
            *grads, *sums, *sides, scale, own, own, own, cosine
        )
        if saved:
            grad_sides = UnitSides.backward(namespace, grad_sides, sides, saved)
        return None, *grad_sides, grad_scale, None, None


@outside_autocast
def fused_pair_entropy(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    scale: Tensor,  # []
    weight: float,
    backend: str,
    unit: bool = False,  # rows have norm 1
) -> Tensor | None:  # [N]
    """Return weight times the cross-entropies of both directions, of normalised rows.

    Return None if no single backend has all operators.
    """
    sides = image.shape[0], text.shape[0]
    namespace = resolve("log_sum_exp", image, backend, sides)
    if namespace is None:
        return None
    normalised = unit or namespace in NORMALISES_ROWS
    parts = ("cross_entropy",) if normalised else ("cross_entropy", "unit_rows")
    if any(resolve(part, image, "auto") != namespace for part in parts):
        return None
    return PairEntropyFunction.apply(namespace, *distinct(image, text, scale), weight, unit)
