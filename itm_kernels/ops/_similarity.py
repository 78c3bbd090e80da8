"""Batched matrices of similarities and distances."""

from typing import Any, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._describe import shape
from itm_kernels._options import Backend, Comparison
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, distinct, torch_op

METRICS = get_args(Comparison)


def _forward_fake(x: Tensor, y: Tensor, metric: str) -> Tensor:
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return x.new_empty((*batch, x.shape[-2], y.shape[-2]))


def _backward_fake(grad: Tensor, x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


define("similarity_forward", "(Tensor x, Tensor y, str metric) -> Tensor", _forward_fake)
define(
    "similarity_backward",
    "(Tensor grad, Tensor x, Tensor y, str metric) -> (Tensor, Tensor)",
    _backward_fake,
)


class SimilarityFunction(torch.autograd.Function):
    """The backward pass recomputes what the gradient of the metric needs."""

    @staticmethod
    def forward(ctx: Any, namespace: str, x: Tensor, y: Tensor, metric: str) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.options = namespace, metric
        return torch_op(namespace, "similarity_forward")(x, y, metric)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, metric = ctx.options
        backward = torch_op(namespace, "similarity_backward")
        return None, *backward(grad, *ctx.saved_tensors, metric), None


@outside_autocast
def fused_similarity(x: Tensor, y: Tensor, metric: str, backend: str) -> Tensor:
    """Compute `similarity` of checked arguments."""
    namespace = resolve("similarity", x, backend, metric=metric)
    if namespace is None:
        return reference.similarity(x, y, metric).to(x.dtype)
    return SimilarityFunction.apply(namespace, *distinct(x, y), metric)


@public
def similarity(
    x: Tensor, y: Tensor, metric: Comparison = "cosine", *, backend: Backend = "auto"
) -> Tensor:
    """Return the similarity or distance of every row of x and every row of y.

    Args:
        x: `[..., N, D]`, floating point. Products and sums of fp16 and bf16 are computed in fp32.
        y: `[..., M, D]`, same device and, outside autocast, dtype; batch dimensions broadcast.
        metric: `"dot"` and `"cosine"` are similarities; `"l1"`, `"l2"` and `"sqeuclidean"` are
            distances, computed from direct differences, so that equal rows have distance 0. The
            cosine with a zero row is 0, and so is its gradient.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `[..., N, M]` in the dtype of x; inside autocast, of x and y promoted. The gradient of l2
        at distance 0 is 0, that of l1 uses sign(0) = 0.

    Raises:
        TypeError: x or y is not a floating-point tensor, or their dtypes differ.
        ValueError: invalid shapes, devices or metric.
        RuntimeError: the requested backend cannot run here.

    >>> import torch
    >>> similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]), "l2")
    tensor([[5.]])
    """
    for name, value in (("x", x), ("y", y)):
        tensor = _checks.is_tensor(name, value)
        leading = ", ".join(["..."] * max(0, tensor.dim() - 2))
        layout = f"[{leading}, rows, D]" if leading else "[rows, D]"
        _checks.floating(name, tensor, layout)
    x, y = _checks.alike(x=x, y=y)
    _checks.option("metric", metric, METRICS)
    try:
        torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"similarity: batch dimensions of x {shape(x.shape)} and y {shape(y.shape)} "
            "do not broadcast; make them equal, or 1"
        ) from None
    return fused_similarity(x, y, metric, backend)
