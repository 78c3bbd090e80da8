"""Synthesis of hard negatives from clusters (SynHNC of ITContrast)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels._options import (
    Backend,
    Checked,
    Clustering,
    Weights,
    flag,
    integer,
    number,
    word,
)
from itm_kernels._public import UnnamedValueError, public
from itm_kernels.ops import Synthesis, SynthesisLogits
from itm_kernels.ops._kmeans import fused_kmeans
from itm_kernels.ops._rbf_synthesis import (
    SynthesisOptions,
    fused_rbf_synthesis,
    fused_rbf_synthesis_logits,
)
from itm_kernels.ops._unit_rows import fused_unit_rows
from itm_kernels.ops._unit_synthesis import fused_unit_synthesis

ITERATIONS, RIDGE = 10, 1e-4


def logits_of_unit_rows(
    anchors: Tensor,  # [N, D] of norm 1, checked
    anchor_ids: Tensor,  # [N]
    members: Tensor,  # [M, D] of norm 1
    member_ids: Tensor,  # [M]
    options: SynthesisOptions,
    clustering: Clustering,
    detach: bool,
    generator: torch.Generator | None,
    backend: str,
    *,
    iterations: int = ITERATIONS,
    draw: bool = True,
) -> SynthesisLogits:
    """Return the cosines of anchors with synthetic vectors, for losses that have unit rows."""
    if detach:
        members = members.detach()  # saves the zeros of their gradient
    sides = anchors, anchor_ids, members, member_ids
    K = options.num_clusters
    inputs = _clustered(*sides, K, clustering, iterations, generator, backend, draw)
    return fused_rbf_synthesis_logits(*inputs, options, detach, backend)


def logits_of_rows(
    anchors: Tensor,  # [N, D], raw, checked
    anchor_ids: Tensor,  # [N]
    members: Tensor,  # [M, D]
    member_ids: Tensor,  # [M]
    options: SynthesisOptions,
    generator: torch.Generator | None,
    backend: str,
    draw: bool,
) -> SynthesisLogits:
    """Return the cosines of `logits_of_unit_rows` with constant vectors of one clustering.

    For backends that normalise rows themselves (`_unit_synthesis.normalises_rows`): no unit rows
    are kept.
    """
    x = fused_unit_rows(members.detach(), backend)
    how = options.num_clusters, ITERATIONS, None, generator, backend, draw
    assignment, _ = fused_kmeans(x, None, *how)
    del x
    inputs = anchors, members, assignment[0], anchor_ids, member_ids
    return fused_unit_synthesis(*inputs, options, backend)


def _clustered(
    q: Tensor,
    anchor_ids: Tensor,
    x: Tensor,
    member_ids: Tensor,
    num_clusters: int,
    clustering: Clustering,
    iterations: int,
    generator: torch.Generator | None,
    backend: str,
    draw: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cluster the members; return the tensor arguments of the synthesis operators."""
    own = anchor_ids[:, None] != member_ids if clustering == "per_anchor" else None
    assignment, _ = fused_kmeans(
        x.detach(), own, num_clusters, iterations, None, generator, backend, draw
    )
    return q, x, assignment[0] if own is None else assignment, anchor_ids, member_ids


class HardNegativeSynthesis(Checked, nn.Module):
    r"""Synthesise hard negatives for every anchor from the clusters of the other modality.

    The members that do not share the id of an anchor are clustered. Each cluster yields one vector,
    :math:`\bar q_k = \sum_{n \in k} w_n \hat k_n` (see `ops.rbf_synthesis`). Has no parameters.
    Options are attributes: they may be changed between calls, and are checked when they are set.

    Args:
        num_clusters: K >= 1; clusters beyond the number of members are invalid.
        sigma: width of the kernel on unit vectors, > 0.
        weights: `"kam"` (kernel associative memory) or `"attention"`.
        clustering: `"shared"`, one k-means per call, where each anchor ignores the members that
            share its id, or `"per_anchor"`, the paper read literally: one k-means per anchor.
        iterations: number of k-means iterations.
        ridge: regularisation of the kam weights, >= 0.
        detach: stop the gradient through the synthetic vectors; if False, it reaches anchors,
            members and weights (assignments have no gradient).
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: shapes, devices, ids or options do not fit.

    Memory: kam weights are the exact solution of a linear system, with n^2 / 2 fp64 numbers per
    cluster of n members. In Triton, up to 11,520 members, the memory is that of one cluster with
    all members (at most 537 MB), without synchronisation. Beyond, with a shared clustering, the
    host reads the sizes of the clusters once per forward pass (one synchronisation on CUDA) and
    processes clusters in parts: at 32,768 members of D = 1024, 8 equal clusters take 306 MB, and
    one cluster with all members 4.6 GB. During capture of a CUDA graph nothing can be read, and
    4.6 GB are allocated.

    Source: Wu et al., ITContrast: Contrastive Learning with Hard Negative Synthesis for Image-Text
    Matching, 2023, section 3.2.

    >>> import torch
    >>> synthesis = HardNegativeSynthesis(num_clusters=2, sigma=0.5)
    >>> synthesis(torch.eye(4), torch.eye(4)).vectors.shape
    torch.Size([4, 2, 4])
    """

    checks = {
        "num_clusters": integer(1),
        "sigma": number(above=0, power=2),
        "weights": word(Weights),
        "clustering": word(Clustering),
        "iterations": integer(0),
        "ridge": number(least=0),
        "detach": flag,
        "backend": word(Backend),
    }

    def __init__(
        self,
        num_clusters: int = 8,
        *,
        sigma: float = 0.1,
        weights: Weights = "kam",
        clustering: Clustering = "shared",
        iterations: int = ITERATIONS,
        ridge: float = RIDGE,
        detach: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        self.sigma = sigma
        self.weights = weights
        self.clustering: Clustering = clustering
        self.iterations = iterations
        self.ridge = ridge
        self.detach = detach
        self.backend = backend

    @property
    def options(self) -> SynthesisOptions:
        """Return the options of the operator."""
        return SynthesisOptions(
            self.num_clusters, float(self.sigma), self.weights, float(self.ridge)
        )

    @public
    def forward(
        self,
        anchors: Tensor,  # [N, D], normalised internally
        members: Tensor,  # [M, D]; M = N without ids, anchor n then ignores member n
        *,
        anchor_ids: Tensor | None = None,  # [N]
        member_ids: Tensor | None = None,  # [M]
        generator: torch.Generator | None = None,
    ) -> Synthesis:
        """Return synthetic vectors `[N, K, D]` and a mask of those that exist `[N, K]`."""
        _checks.generator(generator)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            sides = self._sides(anchors, members, anchor_ids, member_ids)
            how = self.num_clusters, self.clustering, self.iterations, generator
            inputs = _clustered(*sides, *how, self.backend)
            return fused_rbf_synthesis(*inputs, self.options, self.backend)

    @public
    def logits(
        self,
        anchors: Tensor,
        members: Tensor,
        *,
        anchor_ids: Tensor | None = None,
        member_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SynthesisLogits:
        """Return the cosines of every anchor with its synthetic vectors, `[N, K]`.

        With detach, the vectors are constants: only the anchors get a gradient.
        """
        _checks.generator(generator)
        sides = self._sides(anchors, members, anchor_ids, member_ids)
        how = self.options, self.clustering, self.detach, generator
        return logits_of_unit_rows(*sides, *how, self.backend, iterations=self.iterations)

    def _sides(
        self,
        anchors: Tensor,
        members: Tensor,
        anchor_ids: Tensor | None,
        member_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Check both sides; return their unit rows, each with its ids."""
        anchors, members = _checks.embeddings(anchors=anchors, members=members)
        names, sides = ("anchor_ids", "member_ids"), (anchors, members)
        anchor_ids, member_ids = _checks.id_pair(names, (anchor_ids, member_ids), sides)
        if anchor_ids is None or member_ids is None:
            if anchors.shape[0] != members.shape[0]:
                raise UnnamedValueError(
                    f"anchors {list(anchors.shape)} and members "
                    f"{list(members.shape)} differ in rows; pass anchor_ids and member_ids"
                )
            anchor_ids = member_ids = torch.arange(anchors.shape[0], device=anchors.device)
        q = fused_unit_rows(anchors, self.backend)
        return q, anchor_ids, fused_unit_rows(members, self.backend), member_ids

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.checks)

    if TYPE_CHECKING:
        __call__ = forward
