"""Hardest negatives and max of hinges in eager PyTorch, for eager_backend.py."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from itm_kernels import reference


def hinge(scores: Tensor, positive: Tensor, margin: float, semihard: bool) -> Tensor:
    """Return the index of the hardest negative `[rows]`, -1 if its hinge is not active."""
    allowed = scores.masked_fill(scores >= positive[:, None], -torch.inf) if semihard else scores
    value, index = allowed.max(1)
    return torch.where((margin + value - positive > 0) | value.isnan(), index, -1)


def max_of_hinges_forward(image, text, positive, image_ids, text_ids, margin, semihard):
    loss = reference.max_of_hinges(image, text, positive, image_ids, text_ids, margin, semihard)
    scores = image.double() @ text.double().T
    if image_ids is None:
        image_ids = text_ids = positive = torch.arange(len(text))
    negatives = scores.masked_fill(image_ids[:, None] == text_ids, -torch.inf)
    s_positive = scores[positive, torch.arange(len(text))]
    found = (
        hinge(side, s_positive, margin, semihard) for side in (negatives[positive], negatives.T)
    )
    nan = loss.isnan() & (positive >= 0)
    return loss, *(index.masked_fill(nan, -2) for index in found)


def max_of_hinges_backward(grad, image, text, positive, text_index, image_index):
    j = torch.arange(len(text))
    i = j if positive is None else positive
    weights = torch.zeros(len(image), len(text), dtype=torch.float64)
    for rows, columns, active in (
        (i, text_index.clamp_min(0), text_index >= 0),
        (image_index.clamp_min(0), j, image_index >= 0),
    ):
        share = grad.double() * active
        weights.index_put_((rows, columns), share, accumulate=True)
        weights.index_put_((i, j), -share, accumulate=True)
    nan = torch.zeros_like(share).masked_fill(text_index == -2, torch.nan)
    weights.index_put_((i, j), nan, accumulate=True)
    grad_image, grad_text = weights @ text.double(), weights.T @ image.double()
    return grad_image.to(image.dtype), grad_text.to(text.dtype)


def max_of_hinges_total_forward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, weight = arguments
    loss, *found = max_of_hinges_forward(*given)
    return weight * loss.sum(), *(index.masked_fill(loss.isnan(), -2) for index in found)


def max_of_hinges_total_backward(grad, image, text, positive, text_index, image_index, weight):
    positive = positive if positive is None else positive.clamp_min(0)
    grads = (weight * grad).expand(len(text)), image, text, positive, text_index, image_index
    return max_of_hinges_backward(*grads)


def hardest_negatives_backward(
    grad_positive, grad_text, grad_image, image, text, positive, text_index, image_index
):
    i, j = torch.arange(len(image)), torch.arange(len(text))
    weights = torch.zeros(len(image), len(text), dtype=torch.float64)
    for rows, columns, share in (
        (j if positive is None else positive, j, grad_positive),
        (i, text_index.clamp_min(0), grad_text * (text_index >= 0)),
        (image_index.clamp_min(0), j, grad_image * (image_index >= 0)),
    ):
        weights.index_put_((rows, columns), share.double(), accumulate=True)
    grad_image, grad_text = weights @ text.double(), weights.T @ image.double()
    return grad_image.to(image.dtype), grad_text.to(text.dtype)


BITS = torch.arange(32)


def inside(x: Tensor, ids: Tensor | None, lower: float, upper: float) -> Tensor:
    """Mark pairs in the official band of cosines, and the diagonal of rows with infinite sums."""
    scores = reference.similarity(x, x, "dot")
    own = torch.arange(len(x)) if ids is None else ids
    negative = (own[:, None] != own) | scores.isnan()
    found = ~(scores <= upper) & ~(scores >= 1 - lower) & negative
    row = reference.intra_modal(x, ids, "cosine", "official", lower, upper, False)
    return found | torch.diag(~row.isfinite())


def imc_total_forward(image, text, positive, image_ids, text_ids, margin, lower, upper, weight):
    given = image, text, positive, image_ids, text_ids
    total, *indices = max_of_hinges_total_forward(*given, margin, False, 1.0)
    masks = []
    for x, ids in ((image, image_ids), (text, text_ids)):
        row = reference.intra_modal(x, ids, "cosine", "official", lower, upper, False)
        total = total + weight * row.mean()
        bits = torch.nn.functional.pad(inside(x, ids, lower, upper), (0, -len(x) % 32))
        words = (bits.view(len(x), -1, 32).to(torch.int64) << BITS).sum(2)
        masks.append(words.to(torch.int32))
    hardest = reference.hardest_negatives(*given)[2].to(torch.int32)
    i = torch.arange(len(text)) if positive is None else positive.clamp_min(0)
    counts = torch.zeros(len(image)).to(total).index_add(0, i, (indices[0] >= 0).to(total))
    return total, *indices, hardest, counts, *masks


def imc_total_backward(
    grad, image, text, positive, text_index, image_index, hardest, counts, *masks_and_weight
):
    *masks, weight = masks_and_weight
    hinges = max_of_hinges_total_backward(grad, image, text, positive, text_index, image_index, 1.0)
    found = []
    for x, hinge_grad, mask in zip((image, text), hinges, masks, strict=True):
        bits = (mask[:, :, None] >> BITS & 1).flatten(1)[:, : len(x)].to(grad.dtype)
        nan = 0 / (1 - bits.diag())[:, None]
        band = 2 * grad * weight / len(x) * (bits @ x.to(grad))
        found.append((hinge_grad + band + nan).to(x.dtype))
    return tuple(found)


KERNELS: dict[str, Callable[..., Any]] = {
    "hardest_negatives_forward": reference.hardest_negatives,
    "hardest_negatives_backward": hardest_negatives_backward,
    "max_of_hinges_forward": max_of_hinges_forward,
    "max_of_hinges_backward": max_of_hinges_backward,
    "max_of_hinges_total_forward": max_of_hinges_total_forward,
    "max_of_hinges_total_backward": max_of_hinges_total_backward,
    "imc_total_forward": imc_total_forward,
    "imc_total_backward": imc_total_backward,
}
