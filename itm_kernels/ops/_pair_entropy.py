"""Cross-entropies of the pairs of a diagonal from rows as they came, as one step of autograd.

The operators are those of `unit_rows`, `log_sum_exp` and `cross_entropy`, and so are the bits. What
lies between them, four autograd Functions and the views that join them, takes longer than eager
PyTorch's whole loss of a small batch.
"""

from typing import Any

import torch
from torch import Tensor

from itm_kernels._autocast import outside_autocast
from itm_kernels._policies import NORMALISES_ROWS, keeps_scores
from itm_kernels.backends import resolve
from itm_kernels.ops._define import distinct, torch_op
from itm_kernels.ops._unit_rows import Sides


class _PairEntropy(torch.autograd.Function):
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
        made: tuple[Tensor, ...] = ()
        if not unit:
            made = Sides.of(namespace, image, text)
            image, text = made[2:4]
        own = torch.arange(image.shape[0], device=image.device)
        inputs = image, text, scale, own, own, own, False
        keep = any(ctx.needs_input_grad) and keeps_scores(namespace, image, text)
        found = torch_op(namespace, "log_sum_exp_forward")(*inputs, keep)
        row, column, positive, row_highest, column_highest, scores = found
        sums = row, column, row_highest, column_highest, scores
        negatives = torch.stack((row, column)).unsqueeze(1)
        highest = torch.stack((row_highest, column_highest)).unsqueeze(1)
        entropy = positive, negatives, highest
        ctx.save_for_backward(*entropy, *sums, image, text, scale, own, *made)
        ctx.options = namespace, weight
        return torch_op(namespace, "cross_entropy_forward")(*entropy, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, weight = ctx.options
        entropy, sums, saved = (ctx.saved_tensors[i:k] for i, k in ((0, 3), (3, 8), (8, None)))
        sides, (scale, own), made = saved[:2], saved[2:4], saved[4:]
        if made:
            sides = Sides.rows(namespace, made)
        of_positive, of_sums = torch_op(namespace, "cross_entropy_backward")(grad, *entropy, weight)
        pulls = of_sums[0, 0], of_sums[1, 0], of_positive
        *of_sides, of_scale = torch_op(namespace, "log_sum_exp_backward")(
            *pulls, *sums, *sides, scale, own, own, own, False
        )
        if made:
            of_sides = Sides.gradients(namespace, of_sides, sides, made)
        return None, *of_sides, of_scale, None, None


@outside_autocast
def fused_pair_entropy(
    image: Tensor,  # [N, D]
    text: Tensor,  # [N, D]
    scale: Tensor,  # []
    weight: float,
    function: str,
    backend: str,
    unit: bool = False,  # rows are of length 1
) -> Tensor | None:  # [N]
    """Return weight times the cross-entropies of both directions, of rows scaled to length 1.

    None where one backend does not hold all operators, or takes rows as they are.
    """
    sides = image.shape[0], text.shape[0]
    namespace = resolve(function, "log_sum_exp", image, backend, sides)
    if namespace is None or namespace in NORMALISES_ROWS:
        return None
    parts = ("cross_entropy",) if unit else ("cross_entropy", "unit_rows")
    if any(resolve(function, part, image, "auto") != namespace for part in parts):
        return None
    return _PairEntropy.apply(namespace, *distinct(image, text, scale), weight, unit)
