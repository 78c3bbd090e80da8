"""The contrastive losses of open_clip (mlfoundations/open_clip); features come as they are."""

from torch import Tensor, nn

from itm_kernels import _checks
from itm_kernels._pairs import Pairs
from itm_kernels.losses._contrast import mean_cross_entropy
from itm_kernels.ops import sigmoid as operator
from itm_kernels.ops.log_sum_exp import as_scalar

_DIAGONAL = Pairs(None, None, None)


class ClipLoss(nn.Module):
    """Mean of both directions' softmax cross-entropy over the batch.

    Args:
        local_loss: no effect in one process.
        gather_with_grad: no effect in one process.
        cache_labels: no effect, there are no labels to cache.
        rank: of this process.
        world_size: number of processes, 1 in this version.
        use_horovod: no effect in one process.

    Raises:
        RuntimeError: `world_size` exceeds 1.

    Source: Radford et al., CLIP, 2021, figure 3; open_clip's ClipLoss.

    Example:
        >>> import torch
        >>> ClipLoss()(torch.eye(2), torch.eye(2), torch.tensor(2.0))
        tensor(0.1269)
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        _refuse_many_processes("ClipLoss", world_size)

    def forward(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, or ``{"contrastive_loss": loss}`` with `output_dict`."""
        image, text, scale, bias = _checked(
            "ClipLoss", image_features, text_features, logit_scale, logit_bias
        )
        # A bias of all logits cancels: its gradient is 0, but not missing.
        loss = mean_cross_entropy(image, text, scale, _DIAGONAL, "ClipLoss", "auto").mean()
        loss = loss + 0 * bias
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """Sum over all pairs of the binary cross-entropy of being a pair, divided by the batch.

    Args:
        cache_labels: no effect, there are no labels to cache.
        rank: of this process.
        world_size: number of processes, 1 in this version.
        dist_impl: how processes exchange features; no effect in one process.

    Raises:
        RuntimeError: `world_size` exceeds 1.
        ValueError: `dist_impl` is unknown.

    Source: Zhai et al., SigLIP, 2023, algorithm 1; open_clip's SigLipLoss.

    Example:
        >>> import torch
        >>> SigLipLoss()(torch.eye(2), torch.eye(2), torch.tensor(10.0), torch.tensor(-10.0))
        tensor(0.6932)
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        _refuse_many_processes("SigLipLoss", world_size)
        if dist_impl is not None:
            allowed = ("bidir", "shift", "reduce", "gather")
            _checks.option("SigLipLoss", "dist_impl", dist_impl, allowed)

    def forward(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, or ``{"contrastive_loss": loss}`` with `output_dict`."""
        inputs = _checked("SigLipLoss", image_features, text_features, logit_scale, logit_bias)
        loss = operator.run(*inputs, _DIAGONAL, "SigLipLoss", "auto").mean()
        return {"contrastive_loss": loss} if output_dict else loss


def _refuse_many_processes(function: str, world_size: int) -> None:
    if world_size > 1:
        raise RuntimeError(
            f"{function}: world_size {world_size} needs the features of other processes, and "
            "distributed training comes with a later version; use one process"
        )


def _checked(
    function: str,
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check a forward's arguments; return features, scale and bias as tensors, no bias as 0."""
    image, text = _checks.embeddings(
        function, image_features=image_features, text_features=text_features
    )
    if len(image) != len(text):
        raise ValueError(
            f"{function}: image_features {list(image.shape)} and text_features "
            f"{list(text.shape)} differ in rows; pass one text per image"
        )
    logit_bias = 0.0 if logit_bias is None else logit_bias
    _checks.scalar(function, "logit_scale", logit_scale)
    _checks.scalar(function, "logit_bias", logit_bias)
    return image, text, as_scalar(logit_scale, image), as_scalar(logit_bias, image)
