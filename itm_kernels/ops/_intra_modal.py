"""Band sums over the pairs of one modality."""

from typing import Any, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend, Metric
from itm_kernels._policies import keeps_band_mask
from itm_kernels._public import public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, torch_op, wide_empty

METRICS = get_args(Metric)


def _forward_fake(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    N, keep_mask = x.shape[0], inputs[-1]
    words = (N, (N + 31) // 32) if keep_mask else (0, 0)
    row, low, high, norm = (wide_empty(x, N) for _ in range(4))
    return row, low, high, norm, x.new_empty(words, dtype=torch.int32)


def _backward_fake(grad: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    return x.new_empty(x.shape)


# low, high [N]: the strict bounds of row n, on the quantity that the mode compares (S for official
#   cosine, D / |D_n| for official distances, otherwise delta). In repel mode high = upper, at which
#   the hinge is 0.
# norm [N]: |D_n| for official distances, otherwise 1.
# mask int32 [N, ceil(N / 32)] if kept, otherwise [0, 0]: bit m % 32 of word m / 32 of row n is set
#   if the pair (n, m) is inside. It is kept only if all rows have the same bounds, so a backend may
#   omit the words left of the diagonal's, m / 32 < n / 32, as Triton does. The backward pass of
#   similarities then compares no rows again.
define(
    "intra_modal_forward",
    "(Tensor x, Tensor? ids, str metric, str mode, float lower, float upper, bool per_row, "
    "bool keep_mask) -> (Tensor row, Tensor low, Tensor high, Tensor norm, Tensor mask)",
    _forward_fake,
)
define(
    "intra_modal_backward",
    "(Tensor grad, Tensor x, Tensor? ids, Tensor row, Tensor low, Tensor high, Tensor norm, "
    "Tensor mask, str metric, str mode) -> Tensor",
    _backward_fake,
)


class IntraModalFunction(torch.autograd.Function):
    """The backward pass reads pairs inside from the mask, or recomputes them from the bounds."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        x: Tensor,
        ids: Tensor | None,
        metric: str,
        mode: str,
        lower: float,
        upper: float,
        per_row: bool,
    ) -> Tensor:
        forward = torch_op(namespace, "intra_modal_forward")
        keep_mask = ctx.needs_input_grad[1] and keeps_band_mask(x, metric, mode)
        row, *saved = forward(x, ids, metric, mode, lower, upper, per_row, keep_mask)
        ctx.save_for_backward(x, ids, row, *saved)
        ctx.options = namespace, metric, mode
        return row

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        namespace, metric, mode = ctx.options
        backward = torch_op(namespace, "intra_modal_backward")
        grad_x = backward(grad, *ctx.saved_tensors, metric, mode)
        return None, grad_x, None, None, None, None, None, None


@outside_autocast
def fused_intra_modal(
    x: Tensor,  # [N, D]
    ids: Tensor | None,
    metric: str,
    mode: str,
    lower: float,
    upper: float,
    per_row: bool,
    backend: str,
) -> Tensor:  # [N]
    """Compute the row sums of checked arguments."""
    ids = None if ids is None else ids.to(x.device, torch.int64, non_blocking=True)
    options = metric, mode, float(lower), float(upper), per_row
    namespace = resolve("intra_modal", x, backend, (x.shape[0], x.shape[0]), metric)
    if namespace is None:
        return reference.intra_modal(x, ids, *options)
    return IntraModalFunction.apply(namespace, x, ids, *options)


@public
def intra_modal_sum(
    x: Tensor,
    lower: float,
    upper: float,
    metric: Metric = "cosine",
    *,
    ids: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""Return the sum of the distances of every row that lie strictly between two bounds.

    .. math:: r_n = \sum_{m \ne n} \delta_{nm} \, [\text{lower} < \delta_{nm} < \text{upper}]

    Args:
        x: `[N, D]`, floating point.
        lower: bound on the distance, in the unit of the metric.
        upper: bound on the distance, above lower.
        metric: `"cosine"` (1 - cos, rows normalised inside), `"l1"` (sum, not mean), `"l2"`, or
            `"sqeuclidean"`.
        ids: `[N]` integers; rows that share an id form no pair.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `[N]`, fp32 for fp16 and bf16 inputs. The bounds have no gradient.

    Raises:
        TypeError: x is not a floating-point tensor, or ids are not integers.
        ValueError: invalid shapes, bounds or metric.
        RuntimeError: the requested backend cannot run here.

    Source: Chen et al., Intra-modal constraint loss, 2022, eqs 4-8.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> intra_modal_sum(x, 0.05, 0.5)
    tensor([0.2000, 0.6000, 0.4000])
    """
    _checks.embeddings(x=x)
    _checks.number("lower", lower)
    _checks.number("upper", upper, above=lower)
    _checks.option("metric", metric, METRICS)
    if ids is not None:
        _checks.identifiers("ids", ids, x.shape[0], x)
    return fused_intra_modal(x, ids, metric, "paper", lower, upper, False, backend)
