"""Sum of hinges, the triplet loss of VSE over all negatives."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks, _positives
from itm_kernels._options import Backend, Exchange, Gradients, Reduction, Unmatched, number
from itm_kernels._public import public
from itm_kernels.losses._module import SHARED, OptionsModule, check_options, spread
from itm_kernels.losses._reduction import nan_where_mistaken, reduce, zero_absent
from itm_kernels.losses._score_matrix import pairs_of_scores
from itm_kernels.losses.over_ranks._hinges import hinges_over_ranks
from itm_kernels.ops._sum_of_hinges import fused_sum_of_hinges
from itm_kernels.ops._sum_of_hinges_from_scores import fused_sum_of_hinges_from_scores


@public
def sum_of_hinges_loss(
    image: Tensor,
    text: Tensor,
    *,
    margin: float = 0.2,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    unmatched: Unmatched = "error",
    reduction: Reduction = "sum",
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    gradients: Gradients = "mean",
    exchange: Exchange = "auto",
) -> Tensor:
    r"""Sum the margin violations of all negatives, in both directions.

    .. math:: \ell_j = \sum_t [\alpha + s_{it} - s_{ij}]_+ + \sum_k [\alpha + s_{kj} - s_{ij}]_+

    for every pair (i, j) of an image and its text, over the texts t and images k with another id.

    Args:
        image: `[N, D]` embeddings, one per image; not normalised here. s is their dot product.
        text: `[M, D]` embeddings, one per text; M = N without ids.
        margin: :math:`\alpha`, in units of the score.
        image_ids: `[N]` integers. Pairs that share an id are never negatives.
        text_ids: `[M]` integers, each the id of exactly one image; five captions per image give
            M = 5 N. If both sides hold the same ids in the same order, the diagonal is positive.
        unmatched: `"error"`, or `"negative"`: a text without an image (from another device, a queue
            or a distractor set) is a negative of every image and forms no pair. Its value is 0, and
            the mean is over the pairs that exist.
        reduction: `"none"` (one value per pair, `[M]`), `"sum"` or `"mean"`.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread: every rank passes its own rows
            and gets the loss of the global batch (`itm_kernels.distributed`). None: this process
            holds the batch.
        gradients: with a group, `"mean"` multiplies gradients by the number of ranks, for trainers
            that average them (DistributedDataParallel, FSDP); `"sum"` does not.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Returns:
        The loss, in fp32 for fp16 and bf16 inputs. NaN in a row makes the loss NaN.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: shapes, devices, ids or options do not fit.
        RuntimeError: the requested backend cannot run here.

    Source: Chen et al., Intra-modal constraint loss, 2022, eq. 1, with l read as a similarity (the
    paper calls it a distance); Faghri et al., VSE++, 2018, eq. 5.

    >>> import torch
    >>> scores = torch.tensor([[0.8, 0.7, 0.65], [0.3, 0.6, 0.55], [0.75, 0.2, 0.5]])
    >>> sum_of_hinges_loss(scores, torch.eye(3))
    tensor(1.8000)
    """
    agreement = spread(group, gradients, exchange)
    if agreement is not None:
        options = image_ids, text_ids, unmatched, reduction, backend, agreement
        return hinges_over_ranks("sum_of_hinges_loss", image, text, margin, None, *options)
    image, text = _checks.embeddings(image=image, text=text)
    _checks.number("margin", margin)
    check_options(reduction, backend)
    pairs, absent, mistaken = _positives.match(image, text, image_ids, text_ids, unmatched)
    values = fused_sum_of_hinges(image, text, pairs, float(margin), backend)
    values = nan_where_mistaken(zero_absent(values, absent), mistaken, image, text)
    return reduce(values, reduction, absent)


class SumOfHingesLoss(OptionsModule):
    """Sum of hinges as a Module; `functional.sum_of_hinges_loss` has the formula.

    Rows are not normalised. Options are attributes: they may be changed between
    steps (`criterion.margin = 0.3`), and are checked when they are set.

    Args:
        margin: by how much a positive must outscore a negative, in units of the score.
        unmatched: `"error"` raises ValueError for a text without an image; `"negative"` makes the
            text a negative of every image, without a pair of its own.
        reduction: `"sum"` over pairs, `"mean"`, or `"none"` (one value per text, `[M]`).
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.
        group: a process group over whose ranks the batch is spread (`itm_kernels.distributed`), or
            None.
        gradients: with a group, `"mean"` for trainers that average gradients over ranks, or
            `"sum"`.
        exchange: with a group, `"gather"`, `"ring"` or `"auto"`: how rows travel.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.

    >>> import torch
    >>> image = torch.eye(4, requires_grad=True)
    >>> loss = SumOfHingesLoss(margin=0.2)(image, torch.eye(4))
    >>> loss.backward()
    """

    checks = {"margin": number(), **SHARED}
    margin: float
    unmatched: Unmatched = "error"
    reduction: Reduction
    backend: Backend

    def __init__(
        self,
        margin: float = 0.2,
        *,
        unmatched: Unmatched = "error",
        reduction: Reduction = "sum",
        backend: Backend = "auto",
        group: ProcessGroup | None = None,
        gradients: Gradients = "mean",
        exchange: Exchange = "auto",
    ) -> None:
        super().__init__(
            margin=margin,
            unmatched=unmatched,
            reduction=reduction,
            backend=backend,
            group=group,
            gradients=gradients,
            exchange=exchange,
        )

    @public
    def forward(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch of embeddings."""
        return sum_of_hinges_loss(
            image, text, image_ids=image_ids, text_ids=text_ids, **self.options
        )

    @public
    def from_scores(
        self,
        scores: Tensor,  # [N, M]
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a score matrix, for models that compute scores without embeddings."""
        pairs, absent, mistaken = pairs_of_scores(
            scores, image_ids, text_ids, self.unmatched, self.group
        )
        values = fused_sum_of_hinges_from_scores(scores, pairs, float(self.margin), self.backend)
        values = nan_where_mistaken(zero_absent(values, absent), mistaken, scores)
        return reduce(values, self.reduction, absent)

    if TYPE_CHECKING:
        __call__ = forward
