"""RBF synthesis: one synthetic vector per anchor and cluster, or only its cosine."""

from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, reference
from itm_kernels._autocast import outside_autocast
from itm_kernels._options import Backend, Weights
from itm_kernels._policies import keeps_synthesis_scores
from itm_kernels._public import UnnamedValueError, public
from itm_kernels.backends import resolve
from itm_kernels.ops._define import (
    define,
    distinct,
    scores_empty,
    torch_op,
    wide_empty,
)


class Synthesis(NamedTuple):
    """Synthetic vectors; a vector is valid if its cluster has a member for the anchor."""

    vectors: Tensor  # [N, K, D]
    valid: Tensor  # [N, K] bool


class SynthesisLogits(NamedTuple):
    """Cosines of every anchor with its synthetic vectors, which are not stored."""

    cosine: Tensor  # [N, K]
    valid: Tensor  # [N, K] bool


class SynthesisOptions(NamedTuple):
    """The options of a synthesis."""

    num_clusters: int
    sigma: float
    weights: str
    ridge: float


def _vectors_fake(
    anchors: Tensor,
    members: Tensor,
    assignment: Tensor,
    anchor_ids: Tensor | None,
    member_ids: Tensor | None,
    num_clusters: int,
    *options: Any,  # the last one: keep_scores
) -> tuple[Tensor, Tensor, Tensor]:
    N, D = anchors.shape
    valid = anchors.new_empty((N, num_clusters), dtype=torch.bool)
    scores = scores_empty(options[-1], anchors, members)
    return wide_empty(anchors, N, num_clusters, D), valid, scores


def _logits_fake(anchors: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    vectors, valid, scores = _vectors_fake(anchors, *inputs)
    return wide_empty(anchors, *vectors.shape[:2]), valid, scores


def _backward_fake(
    grad: Tensor, scores: Tensor, anchors: Tensor, members: Tensor, *inputs: Any
) -> tuple[Tensor, Tensor]:
    return anchors.new_empty(anchors.shape), members.new_empty(members.shape)


_INPUTS = (
    "Tensor anchors, Tensor members, Tensor assignment, Tensor? anchor_ids, Tensor? member_ids, "
    "int num_clusters, float sigma, str weights, float ridge"
)
for _name, _inputs, _fake in (
    ("rbf_synthesis", _INPUTS, _vectors_fake),
    # detach: the vectors are constants; only the anchor of the cosine has a gradient.
    ("rbf_synthesis_logits", f"{_INPUTS}, bool detach", _logits_fake),
):
    # scores [N, M] if kept, otherwise [0, 0], as in log_sum_exp.
    define(
        f"{_name}_forward",
        f"({_inputs}, bool keep_scores) -> (Tensor, Tensor valid, Tensor scores)",
        _fake,
        triton_file="rbf_synthesis",
    )
    define(
        f"{_name}_backward",
        f"(Tensor grad, Tensor scores, {_inputs}) -> (Tensor, Tensor)",
        _backward_fake,
    )


class RbfSynthesisFunction(torch.autograd.Function):
    """Vectors or their cosines, by the name of the operator; backward recomputes the softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        name: str,
        anchors: Tensor,
        members: Tensor,
        assignment: Tensor,
        anchor_ids: Tensor | None,
        member_ids: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        inputs = anchors, members, assignment, anchor_ids, member_ids
        keep = any(ctx.needs_input_grad) and keeps_synthesis_scores(
            namespace, name, anchors, members
        )
        output, valid, scores = torch_op(namespace, f"{name}_forward")(*inputs, *options, keep)
        ctx.mark_non_differentiable(valid)
        ctx.save_for_backward(scores, *inputs)
        ctx.options = namespace, name, options
        return output, valid

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        namespace, name, options = ctx.options
        backward = torch_op(namespace, f"{name}_backward")
        grad_anchors, grad_members = backward(grads[0], *ctx.saved_tensors, *options)
        return None, None, grad_anchors, grad_members, *[None] * (3 + len(options))


@outside_autocast
def fused_rbf_synthesis(
    anchors: Tensor,  # [N, D]
    members: Tensor,  # [M, D]
    assignment: Tensor,  # [M] or [N, M]
    anchor_ids: Tensor | None,  # [N] int64, on the anchors' device
    member_ids: Tensor | None,  # [M]
    options: SynthesisOptions,
    backend: str,
) -> Synthesis:
    """Compute the vectors of checked arguments."""
    inputs = anchors, members, assignment, anchor_ids, member_ids
    sides = anchors.shape[0], members.shape[0]
    namespace = resolve("rbf_synthesis", anchors, backend, sides)
    if namespace is None:
        return Synthesis(*reference.rbf_synthesis(*inputs, *options))
    return Synthesis(
        *RbfSynthesisFunction.apply(namespace, "rbf_synthesis", *distinct(*inputs), *options)
    )


@outside_autocast
def fused_rbf_synthesis_logits(
    anchors: Tensor,  # [N, D]
    members: Tensor,  # [M, D]
    assignment: Tensor,  # [M] or [N, M]
    anchor_ids: Tensor | None,  # [N] int64, on the anchors' device
    member_ids: Tensor | None,  # [M]
    options: SynthesisOptions,
    detach: bool,
    backend: str,
) -> SynthesisLogits:
    """Compute the cosines of checked arguments."""
    inputs = anchors, members, assignment, anchor_ids, member_ids
    name = "rbf_synthesis_logits"
    sides = anchors.shape[0], members.shape[0]
    namespace = resolve(name, anchors, backend, sides)
    if namespace is None:
        return SynthesisLogits(*reference.rbf_synthesis_logits(*inputs, *options, detach))
    return SynthesisLogits(
        *RbfSynthesisFunction.apply(namespace, name, *distinct(*inputs), *options, detach)
    )


def check_synthesis_options(
    num_clusters: object, sigma: object, weights: object, ridge: object, least: int
) -> None:
    """Check the options of a synthesis."""
    _checks.integer("num_clusters", num_clusters, least)
    _checks.number("sigma", sigma, above=0, power=2)
    _checks.option("weights", weights, get_args(Weights))
    _checks.number("ridge", ridge, least=0)


def _checked(
    anchors: Tensor,
    members: Tensor,
    assignment: Tensor,
    anchor_ids: Tensor | None,
    member_ids: Tensor | None,
    options: SynthesisOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check all arguments and return the tensors on the device of the anchors."""
    anchors, members = _checks.embeddings(anchors=anchors, members=members)
    check_synthesis_options(*options, least=1)
    _checks.is_tensor("assignment", assignment)
    N, M = anchors.shape[0], members.shape[0]
    if assignment.dtype not in _checks.INTEGER or assignment.shape not in ((M,), (N, M)):
        raise UnnamedValueError(
            f"assignment must be integers [{M}] or [{N}, {M}], one cluster per member "
            f"(and anchor), got {_checks.describe(assignment)}"
        )
    names, sides = ("anchor_ids", "member_ids"), (anchors, members)
    ids = _checks.id_pair(names, (anchor_ids, member_ids), sides)
    return anchors, members, assignment.to(anchors.device, torch.int64), *ids


@public
def rbf_synthesis(
    anchors: Tensor,
    members: Tensor,
    assignment: Tensor,
    num_clusters: int,
    sigma: float,
    *,
    weights: Weights = "kam",
    ridge: float = 1e-4,
    anchor_ids: Tensor | None = None,
    member_ids: Tensor | None = None,
    backend: Backend = "auto",
) -> Synthesis:
    r"""Synthesise one vector per anchor and cluster from the members of the cluster.

    .. math:: \bar q_k = \sum_{n \in k} w_n \hat k_n, \quad
              \hat k = \mathrm{softmax}_{n \in k} \left( -|q - x_n|^2 / 2 \sigma^2 \right)

    Args:
        anchors: `[N, D]`, not normalised (the losses pass unit rows).
        members: `[M, D]`.
        assignment: `[M]` integers, the cluster of every member, or `[N, M]`, one clustering per
            anchor; a member with -1 is in no cluster.
        num_clusters: K, at least 1.
        sigma: width of the kernel, in the unit of distances, > 0.
        weights: `"kam"`, :math:`W = X (K + \text{ridge} \, I)^{-1}` per cluster with the Gram
            matrix K of the whole cluster, independent of the anchor (for its memory see
            `synthesis.HardNegativeSynthesis`), or `"attention"`, :math:`w_n = x_n`.
        ridge: >= 0; with 0, a cluster with duplicates gives NaN.
        anchor_ids: `[N]` integers; the softmax of an anchor excludes the members that share its id.
        member_ids: `[M]` integers.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Returns:
        `Synthesis(vectors [N, K, D], valid [N, K])`; vectors are fp32 for fp16 and bf16 inputs and
        0 where invalid.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: invalid shapes, devices or options.
        RuntimeError: the requested backend cannot run here.

    Source: ITContrast, section 3.2, eqs 3-5. Eq. 5 as printed does not type-check; this solves the
    kernel associative memory that it cites.

    >>> import torch
    >>> q, x = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    >>> rbf_synthesis(q, x, torch.tensor([0, 0]), 1, 0.5, weights="attention").vectors
    tensor([[[0.7687, 0.6157]]])
    """
    options = SynthesisOptions(num_clusters, sigma, weights, ridge)
    inputs = _checked(anchors, members, assignment, anchor_ids, member_ids, options)
    return fused_rbf_synthesis(*inputs, options, backend)


@public
def rbf_synthesis_logits(
    anchors: Tensor,
    members: Tensor,
    assignment: Tensor,
    num_clusters: int,
    sigma: float,
    *,
    weights: Weights = "kam",
    ridge: float = 1e-4,
    anchor_ids: Tensor | None = None,
    member_ids: Tensor | None = None,
    backend: Backend = "auto",
) -> SynthesisLogits:
    """Return the cosine of every anchor with the vectors of `rbf_synthesis`.

    Arguments and errors are those of `rbf_synthesis`. The output is `[N, K]`, so that kernels need
    not store the vectors `[N, K, D]`. Cosines with invalid vectors are 0.

    >>> import torch
    >>> q, x = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    >>> rbf_synthesis_logits(q, x, torch.tensor([0, 0]), 1, 0.5, ridge=0.0).cosine
    tensor([[0.8774]])
    """
    options = SynthesisOptions(num_clusters, sigma, weights, ridge)
    inputs = _checked(anchors, members, assignment, anchor_ids, member_ids, options)
    return fused_rbf_synthesis_logits(*inputs, options, False, backend)
