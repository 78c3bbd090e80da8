"""The contrastive losses of open_clip (mlfoundations/open_clip); features are not normalised.

Attributes and methods match the originals, including versions after 3.3.0, so that losses which
subclass them (distillation, CoCa) also subclass these. Labels and logits are only for subclasses:
the forward passes here use the fused operators and need neither.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from itm_kernels import _checks
from itm_kernels._positives import Pairs
from itm_kernels._public import UnnamedRuntimeError, UnnamedValueError, names_errors
from itm_kernels.backends import resolve
from itm_kernels.compat._drop_in import DropIn
from itm_kernels.compat._sigmoid_blocks import sum_in_blocks
from itm_kernels.losses._contrast import Embeddings, mean_cross_entropy
from itm_kernels.ops._log_sum_exp import as_scalar
from itm_kernels.ops._sigmoid import fused_sigmoid, fused_sigmoid_total

_DIAGONAL = Pairs(None, None, None)
_EXCHANGES = ("bidir", "shift", "reduce", "gather")


class _OneProcess(DropIn):
    """The state of the originals that both losses share."""

    rank: int
    world_size: int
    cache_labels: bool

    def __init__(self, cache_labels: bool, rank: int, world_size: int) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def _checked(self, name: str, value: Any) -> Any:
        if name == "world_size":
            _checks.integer(name, value, 1)
            if value > 1:
                raise UnnamedRuntimeError(
                    f"world_size {value} needs the features of other processes, and distributed "
                    "training comes with a later version; use one process"
                )
        return super()._checked(name, value)


class ClipLoss(_OneProcess):
    """Mean of both directions' softmax cross-entropy over the batch.

    Every attribute may be set between steps.

    Args:
        local_loss: no effect in one process.
        gather_with_grad: no effect in one process.
        cache_labels: store the result of `get_ground_truth` in `labels` as long as the number of
            logits equals `prev_num_logits`. `forward` uses labels stored there.
        rank: rank of this process.
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
        super().__init__(cache_labels, rank, world_size)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.use_horovod = use_horovod

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:  # [num_logits]
        """Return the index of every row's positive."""
        if self._has_labels(device, num_logits):
            return self.labels[device]
        labels = torch.arange(num_logits, device=device, dtype=torch.long)
        if self.cache_labels:
            self.labels[device] = labels
            self.prev_num_logits = num_logits
        return labels

    def get_logits(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # [N, N] each
        """Return the logits per image and per text, in plain PyTorch."""
        # Two products, as in the original, so that neither result is a view of the other.
        per_image = logit_scale * image_features @ text_features.T
        per_text = logit_scale * text_features @ image_features.T
        if logit_bias is None:
            return per_image, per_text
        return per_image + logit_bias, per_text + logit_bias

    @names_errors("ClipLoss")
    def forward(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, or ``{"contrastive_loss": loss}`` with `output_dict`.

        Overridden `get_logits` or `get_ground_truth`, and stored labels, are used.
        """
        inputs = image_features, text_features, logit_scale, logit_bias
        if self._replaces(ClipLoss, "get_logits", "get_ground_truth") or (
            self.labels and self._has_labels(image_features.device, len(image_features))
        ):
            loss = self._loss_of_logits(*inputs)
        else:
            image, text, scale, bias = _checked(*inputs)
            _refuse_unequal_rows(image, text)
            how = self.backend, False  # dot products
            v, c = Embeddings(image, *how), Embeddings(text, *how)
            values = mean_cross_entropy(v, c, scale, _DIAGONAL)
            # A bias added to all logits cancels. Its gradient must be 0, not None, and an infinite
            # bias must make the loss and all gradients NaN.
            loss = values.mean() * (1 + 0 * bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def _has_labels(self, device: torch.device, num_logits: int) -> bool:
        return self.prev_num_logits == num_logits and device in self.labels

    def _loss_of_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
    ) -> Tensor:
        per_image, per_text = self.get_logits(
            image_features, text_features, logit_scale, logit_bias=logit_bias
        )
        labels = self.get_ground_truth(image_features.device, per_image.shape[0])
        return (cross_entropy(per_image, labels) + cross_entropy(per_text, labels)) / 2


class SigLipLoss(_OneProcess):
    """Sum of the binary cross-entropy of match and mismatch over all pairs, divided by the batch.

    Every attribute may be set between steps.

    Args:
        cache_labels: no effect, as in the original.
        rank: rank of this process.
        world_size: number of processes, 1 in this version.
        dist_impl: how processes exchange features; no effect in one process.
        chunk_size: if above 0, no score matrix is stored for the backward pass: the fused operator
            recomputes the scores, or without one, plain PyTorch processes this many rows at a time.
            The loss is the same.

    Raises:
        RuntimeError: `world_size` exceeds 1.
        ValueError: `dist_impl` is unknown or `chunk_size` is negative.

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
        chunk_size: int = 0,
    ) -> None:
        super().__init__(cache_labels, rank, world_size)
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size

    def _checked(self, name: str, value: Any) -> Any:
        if name == "dist_impl":
            value = value or "bidir"
            _checks.option(name, value, _EXCHANGES)
        if name == "chunk_size":
            _checks.integer(name, value, 0)
        return super()._checked(name, value)

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:  # [num_logits, num_logits]
        """Return 1 on the diagonal and -1 elsewhere; -1 everywhere with `negative_only`."""
        labels = torch.full((num_logits, num_logits), -1, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)

    def get_logits(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [M, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:  # [N, M]
        """Return the logits of all pairs, in plain PyTorch."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    @names_errors("SigLipLoss")
    def forward(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, or ``{"contrastive_loss": loss}`` with `output_dict`.

        Overridden `get_logits` or `get_ground_truth` are used.
        """
        inputs = image_features, text_features, logit_scale, logit_bias
        if not self._replaces(SigLipLoss, "get_logits", "get_ground_truth", "_loss"):
            inputs = _checked(*inputs)
            _refuse_unequal_rows(*inputs[:2])
        loss = self._loss(*inputs)
        return {"contrastive_loss": loss} if output_dict else loss

    @names_errors("SigLipLoss")
    def _loss(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [M, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        negative_only: bool = False,
    ) -> Tensor:
        """Return the loss of a block of pairs; its diagonal is positive unless `negative_only`."""
        inputs = image_features, text_features, logit_scale, logit_bias
        if self._replaces(SigLipLoss, "get_logits", "get_ground_truth"):
            logits = self.get_logits(*inputs)
            like = image_features.device, image_features.dtype, len(image_features)
            labels = self.get_ground_truth(*like, negative_only=negative_only)
            return -logsigmoid(labels * logits).sum() / len(image_features)
        image, text, scale, bias = _checked(*inputs)
        sides = image.shape[0], text.shape[0]
        chunked = self.chunk_size > 0
        if (
            negative_only
            or sides[0] != sides[1]
            or (chunked and resolve("sigmoid", image, self.backend, sides) is None)
        ):
            rows = self.chunk_size or sides[0]
            return sum_in_blocks(image, text, scale, bias, negative_only, rows) / sides[0]
        given = image, text, scale, bias, _DIAGONAL
        total = fused_sigmoid_total(*given, True, self.backend)
        if total is None:
            return fused_sigmoid(*given, self.backend, keep=not chunked).mean()
        return total


def _refuse_unequal_rows(image_features: Tensor, text_features: Tensor) -> None:
    if len(image_features) != len(text_features):
        raise UnnamedValueError(
            f"image_features {list(image_features.shape)} and text_features "
            f"{list(text_features.shape)} differ in rows; pass one text per image"
        )


def _checked(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments of forward; return features, scale and bias (default 0) as tensors."""
    image, text = _checks.embeddings(image_features=image_features, text_features=text_features)
    logit_bias = 0.0 if logit_bias is None else logit_bias
    _checks.scalar("logit_scale", logit_scale)
    _checks.scalar("logit_bias", logit_bias)
    return image, text, as_scalar(logit_scale, image), as_scalar(logit_bias, image)
