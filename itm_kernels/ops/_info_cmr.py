"""InfoCMR as one operator, from rows of any norm to the mean or sum over pairs."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels._autocast import outside_autocast
from itm_kernels._positives import Pairs
from itm_kernels.backends import resolve_total
from itm_kernels.ops._define import define, distinct, torch_op, wide_empty
from itm_kernels.ops._rbf_synthesis import SynthesisOptions


def _forward_fake(
    image: Tensor, text: Tensor, learnt: Tensor | None, noise: Tensor | None, *inputs: Any
) -> tuple[Tensor, ...]:
    gradients = inputs[-1]
    N, M, Z = image.shape[0], text.shape[0], 0 if noise is None else noise.shape[0]
    image_weights = wide_empty(image, N if gradients else 0, M + Z)
    text_weights = wide_empty(image, N + Z if gradients else 0, M)
    row_values = wide_empty(image, 2, N + M if gradients else 0)
    return wide_empty(image), image_weights, text_weights, row_values, wide_empty(image)


def _backward_fake(
    grad: Tensor, image: Tensor, text: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return image.new_empty(image.shape), text.new_empty(text.shape), wide_empty(image)


# image_draws, text_draws [K, rows]: draws of k-means++, or None to start with rows far apart.
# learnt: the scale as a tensor, or else None and the number `scale`. weight: of every pair.
# Saved for the backward pass, and empty unless `gradients`:
# image_weights [N, M + Z], text_weights [N + Z, M]: of texts and noise in the gradient of an image,
#   and of images and noise in that of a text. row_values [2, N + M]: two values per row.
define(
    "info_cmr_total_forward",
    "(Tensor image, Tensor text, Tensor? learnt, Tensor? noise, Tensor? image_draws, "
    "Tensor? text_draws, Tensor? positive, Tensor? image_ids, Tensor? text_ids, float scale, "
    "int num_clusters, int iterations, float sigma, str weights, float ridge, float weight, "
    "bool gradients) "
    "-> (Tensor total, Tensor image_weights, Tensor text_weights, Tensor row_values, "
    "Tensor grad_scale)",
    _forward_fake,
)
define(
    "info_cmr_total_backward",
    "(Tensor grad, Tensor image, Tensor text, Tensor? noise, Tensor image_weights, "
    "Tensor text_weights, Tensor row_values, Tensor grad_scale) -> (Tensor, Tensor, Tensor)",
    _backward_fake,
)


class InfoCMRTotalFunction(torch.autograd.Function):
    """The forward pass saves the weights of the gradient; the backward pass multiplies rows."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        image: Tensor,
        text: Tensor,
        learnt: Tensor | None,
        noise: Tensor | None,
        *inputs: Any,
    ) -> Tensor:
        forward = torch_op(namespace, "info_cmr_total_forward")
        total, *kept = forward(image, text, learnt, noise, *inputs, True)
        ctx.save_for_backward(image, text, noise, *kept)
        ctx.options = namespace, learnt is not None, len(inputs)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, learnt, others = ctx.options
        backward = torch_op(namespace, "info_cmr_total_backward")
        grad_image, grad_text, grad_scale = backward(grad, *ctx.saved_tensors)
        grad_scale = grad_scale if learnt else None
        return None, grad_image, grad_text, grad_scale, *[None] * (1 + others)


def info_cmr_total_namespace(
    image: Tensor, text: Tensor, num_noise: int, backend: str
) -> str | None:
    """Return the namespace that has the loss as one operator, None to compute it by parts."""
    sides = image.shape[0], max(text.shape[0], num_noise)
    return resolve_total("info_cmr_total", image, backend, sides)


@outside_autocast
def fused_info_cmr_total(
    image: Tensor,  # [N, D], not normalised
    text: Tensor,  # [M, D]
    scale: float | Tensor,
    pairs: Pairs,
    options: SynthesisOptions,  # the vectors are constants of one clustering per side
    iterations: int,  # of k-means
    num_noise: int,
    draw: bool,  # False: no noise, and k-means starts with rows far apart
    generator: torch.Generator | None,
    weight: float,  # of every pair
    namespace: str,
) -> Tensor:  # []
    """Compute the loss of checked arguments."""
    text_draws, image_draws, noise = _draw(
        image, text, options.num_clusters, num_noise, draw, generator
    )
    learnt = scale if isinstance(scale, Tensor) else None
    number = 0.0 if isinstance(scale, Tensor) else float(scale)
    inputs = distinct(image, text, learnt, noise, image_draws, text_draws, *pairs)
    K, *kernel = options
    settings = number, K, iterations, *kernel, weight
    floats = image, text, learnt
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in floats):
        return InfoCMRTotalFunction.apply(namespace, *inputs, *settings)
    return torch_op(namespace, "info_cmr_total_forward")(*inputs, *settings, False)[0]


def _draw(
    image: Tensor,
    text: Tensor,
    num_clusters: int,
    num_noise: int,
    draw: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return draws for the clusters of texts and of images, and noise, as the parts of the loss."""
    draws: list[Tensor | None] = [None, None]
    if num_clusters and draw:
        draws = [
            rows.new_empty((num_clusters, rows.shape[0]), dtype=torch.float32).exponential_(
                generator=generator
            )
            for rows in (text, image)
        ]
    if not (num_noise and draw):
        return draws[0], draws[1], None
    dtype = torch.promote_types(image.dtype, torch.float32)
    noise = image.new_empty((num_noise, image.shape[1]), dtype=dtype).normal_(generator=generator)
    return draws[0], draws[1], noise.to(image.dtype)
