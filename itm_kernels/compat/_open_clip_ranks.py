"""open_clip's losses over the ranks of the default process group."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from itm_kernels._positives import Pairs
from itm_kernels._public import UnnamedRuntimeError, UnnamedValueError
from itm_kernels.backends import resolve
from itm_kernels.compat._open_clip_features import FeatureLoss, checked, refuse_unequal_rows
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.distributed._collectives import gather_rows
from itm_kernels.distributed._side import Side, local_index
from itm_kernels.losses._contrast import Embeddings, LogSums, cross_entropy, log_sums
from itm_kernels.ops._sigmoid import fused_sigmoid

# Image features, text features, logit_scale and logit_bias.
Inputs = tuple[Tensor, Tensor, float | Tensor, float | Tensor | None]


class Gathered(NamedTuple):
    """The features of all ranks, N of each kind."""

    image: Tensor  # [N, D]
    text: Tensor  # [N, D]
    side: Side


def gather(
    loss: FeatureLoss,
    inputs: Inputs,
    options: Mapping[str, object],
    with_gradient: bool,
    own_with_gradient: bool = True,
) -> Gathered:
    """Gather the features of all ranks, after an exchange of what they were called with.

    Args:
        loss: the loss, of which `rank` and `world_size` are checked.
        inputs: the arguments of this rank: `[n, D]` features, scale and bias.
        options: what must be equal on all ranks.
        with_gradient: sum the gradients of a row over all ranks.
        own_with_gradient: without that, let this rank's own rows keep theirs.

    Raises:
        RuntimeError: there is no process group, or another rank raised an error.
        ValueError: rank and number of ranks are not those of the group, or the ranks disagree.
    """
    if not dist.is_initialized():
        raise UnnamedRuntimeError(
            f"world_size {loss.world_size} needs the features of other processes; call "
            "torch.distributed.init_process_group first, or use world_size 1"
        )
    agreement = Agreement(dist.group.WORLD, "sum", "gather")
    with agreement:
        image, text, *_ = checked(*inputs)
        refuse_unequal_rows(image, text)
        if (loss.rank, loss.world_size) != (agreement.rank, agreement.size):
            raise UnnamedValueError(
                f"rank {loss.rank} of {loss.world_size} is rank {agreement.rank} of "
                f"{agreement.size} in the default process group; pass these numbers"
            )
        rows = {"image_features": image, "text_features": text}
        same: dict[str, Any] = {"logit_scale": inputs[2], "logit_bias": inputs[3], **options}
        agreement.describe(type(loss).__name__, rows, **same)
    side = agreement.sides["image_features"]
    if len(set(side.counts)) > 1:
        raise UnnamedValueError(
            f"ranks have {', '.join(map(str, side.counts))} rows; open_clip's losses need equal "
            "numbers: use losses.InfoNCELoss or losses.SigmoidLoss with group="
        )
    if with_gradient:
        return Gathered(gather_rows(image, side), gather_rows(text, side), side)

    def constant(own: Tensor) -> Tensor:
        found = side.gather(own)
        if not own_with_gradient:
            return found
        return torch.cat([found[: side.own.start], own, found[side.own.stop :]])

    return Gathered(constant(image), constant(text), side)


def local_values(
    image: Tensor,  # [n, D]
    text: Tensor,  # [n, D]
    everyone: Gathered,
    scale: Tensor,  # []
    backend: str,
) -> Tensor:  # [n]
    """Return the mean of both directions' cross-entropies of this rank's rows."""
    side = everyone.side
    own, every = side.indices(image.device), torch.arange(side.total, device=image.device)
    positive = local_index(every, side.own, -1)
    values = []
    for rows, others in ((image, everyone.text), (text, everyone.image)):
        x, y = (Embeddings(features, backend, False) for features in (rows, others))
        found = log_sums(x, y, scale, own, every, positive)
        negatives = [LogSums(found.row, found.row_highest)]
        # One direction: a fourth of both is half of each.
        of_pairs = found.positive[side.own]
        values.append(cross_entropy(of_pairs, negatives, negatives, 0.25, backend))
    return values[0] + values[1]


def has_operator(loss: Any, image: Tensor, text: Tensor) -> bool:
    """Return whether the operator keeps the promise of `chunk_size`."""
    sides = image.shape[0], text.shape[0]
    return not loss.chunk_size or resolve("sigmoid", image, loss.backend, sides) is not None


def siglip_over_ranks(loss: Any, inputs: Inputs, replaced: bool) -> Tensor:
    """Return the sum over pairs of this rank's images and all texts, divided by its images.

    Replaced methods of the loss get the texts of one rank at a time.
    """
    everyone = gather(loss, inputs, {}, True)
    image, text, scale, bias = inputs
    if replaced or not has_operator(loss, image, everyone.text):
        total = loss._loss(*inputs)
        for rank, others in enumerate(everyone.text.split(len(text))):
            if rank != loss.rank:
                total = total + loss._loss(image, others, scale, bias, negative_only=True)
        return total
    image, _, scale, bias = checked(*inputs)
    side, n = everyone.side, image.shape[0]
    own, every = side.indices(image.device), torch.arange(side.total, device=image.device)
    # n is out of range: such a text has no positive among these images.
    pairs = Pairs(local_index(every, side.own, n), own, every)
    keep = not loss.chunk_size
    values = fused_sigmoid(image, everyone.text, scale, bias, pairs, loss.backend, keep=keep)
    return values.sum() / n
