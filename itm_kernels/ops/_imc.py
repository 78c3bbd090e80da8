"""IMC, the max of hinges with bands on both sides: one operator for small batches, or its parts.

The parts are the operators of `max_of_hinges` and `intra_modal`. As three autograd functions, with
the reductions and sums between them, they have more host time than eager PyTorch; as one they have
the same bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from itm_kernels import backends
from itm_kernels._autocast import outside_autocast
from itm_kernels._policies import keeps_band_mask
from itm_kernels._positives import Pairs
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, index_empty, torch_op, wide_empty
from itm_kernels.ops._max_of_hinges import HingesTotalFunction


def _forward_fake(image: Tensor, text: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    N, M = image.shape[0], text.shape[0]
    hardest_text = image.new_empty((N,), dtype=torch.int32)
    masks = (image.new_empty((n, (n + 31) // 32), dtype=torch.int32) for n in (N, M))
    indices = index_empty(text, M), index_empty(text, M)
    return wide_empty(text), *indices, hardest_text, wide_empty(image, N), *masks


def _backward_fake(
    grad: Tensor, image: Tensor, text: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape)


# total: the sum of all hinges, plus weight times the mean row sum of cosines in the official band,
#   upper < S < 1 - lower, for each side. A pair without an image makes it NaN, as well as the
#   gradients of its text and of the first image.
# text_index, image_index [M]: as in max_of_hinges_forward.
# hardest_text int32 [N]: of every image; violations [N]: how many of its pairs violate the margin
#   with it.
# masks int32 [N, ceil(N / 32)] and [M, ceil(M / 32)]: the pairs inside the band, and the diagonal
#   entry of a row whose sum is not finite. The gradient multiplies rows by these counts and bits.
define(
    "imc_total_forward",
    "(Tensor image, Tensor text, Tensor? positive, Tensor? image_ids, Tensor? text_ids, "
    "float margin, float lower, float upper, float weight) -> (Tensor total, Tensor text_index, "
    "Tensor image_index, Tensor hardest_text, Tensor violations, Tensor image_mask, "
    "Tensor text_mask)",
    _forward_fake,
)
define(
    "imc_total_backward",
    "(Tensor grad, Tensor image, Tensor text, Tensor? positive, Tensor text_index, "
    "Tensor image_index, Tensor hardest_text, Tensor violations, Tensor image_mask, "
    "Tensor text_mask, float weight) -> (Tensor, Tensor)",
    _backward_fake,
)


@outside_autocast
def fused_imc_total(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    lower: float,
    upper: float,
    weight: float,
    backend: str,
) -> Tensor | None:  # []
    """Return the loss with the official band of cosines, None if no backend has it as one operator.

    The loss and its gradients are NaN if a pair has no image.
    """
    operator, sides = "imc_total", (image.shape[0], text.shape[0])
    namespace = backends.resolve_total(operator, image, backend, sides)
    if namespace is None:
        return None
    given = distinct(image, text, *pairs)
    return HingesTotalFunction.apply(namespace, operator, *given, margin, lower, upper, weight)


class Band(NamedTuple):
    """The options of both constraints, as `intra_modal_forward` takes them, and their reduction."""

    metric: str
    mode: str
    lower: float
    upper: float
    per_row: bool
    weight: float
    mean: bool  # of the rows; otherwise their sum

    def weighted(self, value: Tensor) -> Tensor:
        """Return a value times the weight."""
        return value if self.weight == 1 else value * self.weight


class IMCFunction(torch.autograd.Function):
    """The loss, and the band sums of images and of texts, without gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        positive: Tensor | None,
        image_ids: Tensor | None,
        text_ids: Tensor | None,
        margin: float,
        *options: Any,  # a band
    ) -> tuple[Tensor, Tensor, Tensor]:
        band = Band(*options)
        pairs = positive, image_ids, text_ids
        hinges = torch_op(namespace, "max_of_hinges_forward")(image, text, *pairs, margin, False)
        total = hinges[0].sum()
        sums: list[Tensor] = []
        saved: list[Tensor] = []
        sides = (image, image_ids), (text, text_ids)
        for (x, ids), needed in zip(sides, ctx.needs_input_grad[1:3], strict=True):
            keep_mask = needed and keeps_band_mask(x, band.metric, band.mode)
            row, *others = torch_op(namespace, "intra_modal_forward")(x, ids, *band[:5], keep_mask)
            total = total + band.weighted(row.mean() if band.mean else row.sum())
            saved += [row, *others]
            sums.append(row)
        ctx.save_for_backward(image, text, *pairs, *hinges[1:], *saved)
        ctx.mark_non_differentiable(*sums)
        ctx.set_materialize_grads(False)
        ctx.options = namespace, band
        return total, *sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 14
        namespace, band = ctx.options
        image, text, positive, image_ids, text_ids, *found = ctx.saved_tensors
        indices, of_image, of_text = found[:2], found[2:7], found[7:]
        of_side = band.weighted(grad)
        sides = (image, image_ids, of_image), (text, text_ids, of_text)
        # The constraints first: their weights take more memory than the gradients of the hinges.
        of_bands = [
            _band_gradient(namespace, band, of_side, *side) if needed else None
            for needed, side in zip(ctx.needs_input_grad[1:3], sides, strict=True)
        ]
        backward = torch_op(namespace, "max_of_hinges_backward")
        of_hinges = backward(grad.expand(text.shape[0]), image, text, positive, *indices)
        both = map(_sum, of_bands, of_hinges)
        return None, *both, *(None,) * 11


def _band_gradient(
    namespace: str,
    band: Band,
    grad: Tensor,  # [], of the constraint
    x: Tensor,
    ids: Tensor | None,
    saved: Sequence[Tensor],  # what `intra_modal_forward` returned
) -> Tensor:
    of_row = (grad / x.shape[0] if band.mean else grad).expand(x.shape[0])
    found: Tensor = torch_op(namespace, "intra_modal_backward")(of_row, x, ids, *saved, *band[:2])
    return found


def _sum(a: Tensor | None, b: Tensor) -> Tensor | None:
    """Add gradients as autograd does: in place unless the sum is recorded."""
    if a is None:
        return None
    return a + b if torch.is_grad_enabled() else a.add_(b)


@outside_autocast
def fused_imc(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    pairs: Pairs,
    margin: float,
    band: Band,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor] | None:  # [], [N], [M]
    """Return the loss, and the band sums of all rows; None if no single backend has both parts."""
    N, M = image.shape[0], text.shape[0]
    namespace = resolve("max_of_hinges", image, backend, (N, M))
    if namespace is None or any(
        resolve("intra_modal", x, backend, (n, n), band.metric) != namespace
        for x, n in ((image, N), (text, M))
    ):
        return None
    return IMCFunction.apply(namespace, *distinct(image, text, *pairs), margin, *band)
