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
from itm_kernels._public import UnnamedRuntimeError, names_errors
from itm_kernels.compat._open_clip_features import FeatureLoss, checked, refuse_unequal_rows
from itm_kernels.compat._open_clip_ranks import (
    Gathered,
    gather,
    has_operator,
    local_values,
    siglip_over_ranks,
)
from itm_kernels.compat._sigmoid_blocks import sum_in_blocks
from itm_kernels.losses._contrast import Embeddings, mean_cross_entropy
from itm_kernels.ops._sigmoid import fused_sigmoid, fused_sigmoid_total

_DIAGONAL = Pairs(None, None, None)
_EXCHANGES = ("bidir", "shift", "reduce", "gather")


class ClipLoss(FeatureLoss):
    """Mean of both directions' softmax cross-entropy over the batch.

    Every attribute may be set between steps.

    Args:
        local_loss: with several processes, the loss of this process's rows against the rows of
            all, instead of the loss of all rows.
        gather_with_grad: with several processes, whether rows of other processes get a gradient.
            Without it, the gradient averaged over processes is not that of the whole batch: with
            `local_loss` rows get none as negatives of other processes, otherwise the embeddings'
            is 1 / `world_size` of it.
        cache_labels: store the result of `get_ground_truth` in `labels` as long as the number of
            logits equals `prev_num_logits`. `forward` uses labels stored there.
        rank: rank of this process in the default process group.
        world_size: number of processes of the default process group. Above 1, all of them call the
            loss with the same number of rows.
        use_horovod: no effect in one process.

    Raises:
        RuntimeError: `world_size` exceeds 1 without a process group, or with `use_horovod`.

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
        if self.world_size > 1 and self.local_loss:
            labels = labels + num_logits * self.rank
        if self.cache_labels:
            self.labels[device] = labels
            self.prev_num_logits = num_logits
        return labels

    @names_errors("ClipLoss")
    def get_logits(
        self,
        image_features: Tensor,  # [N, D]
        text_features: Tensor,  # [N, D]
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # [N, N] each
        """Return the logits per image and per text, in plain PyTorch."""
        others = image_features, text_features
        if self.world_size > 1:
            all_image, all_text, _ = self._gather(
                image_features, text_features, logit_scale, logit_bias
            )
            others = all_image, all_text
            if not self.local_loss:
                image_features, text_features = others
        # Two products, as in the original, so that neither result is a view of the other.
        per_image = logit_scale * image_features @ others[1].T
        per_text = logit_scale * text_features @ others[0].T
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
        processes = 1 if self.local_loss else self.world_size
        if self._replaces(ClipLoss, "get_logits", "get_ground_truth") or (
            self.labels and self._has_labels(image_features.device, len(image_features) * processes)
        ):
            loss = self._loss_of_logits(*inputs)
        else:
            values, bias = self._values(*inputs)
            # A bias added to all logits cancels. Its gradient must be 0, not None, and an infinite
            # bias must make the loss and all gradients NaN.
            loss = values.mean() * (1 + 0 * bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def _values(self, *inputs: Any) -> tuple[Tensor, Tensor]:  # [N], []
        """Return the cross-entropy of every pair, and the bias."""
        how = self.backend, False  # dot products
        if self.world_size == 1:
            image, text, scale, bias = checked(*inputs)
            refuse_unequal_rows(image, text)
        else:
            found = self._gather(*inputs)
            own_image, own_text, scale, bias = checked(*inputs)
            if self.local_loss:
                return local_values(own_image, own_text, found, scale, self.backend), bias
            image, text = found.image, found.text
        v, c = Embeddings(image, *how), Embeddings(text, *how)
        return mean_cross_entropy(v, c, scale, _DIAGONAL), bias

    def _gather(self, *inputs: Any) -> Gathered:
        if self.use_horovod:
            raise UnnamedRuntimeError("use_horovod is not supported; use torch.distributed")
        options = {"local_loss": self.local_loss, "gather_with_grad": self.gather_with_grad}
        return gather(self, inputs, options, self.gather_with_grad, not self.local_loss)

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


class SigLipLoss(FeatureLoss):
    """Sum of the binary cross-entropy of match and mismatch over all pairs, divided by the batch.

    Every attribute may be set between steps.

    Args:
        cache_labels: no effect, as in the original.
        rank: rank of this process in the default process group.
        world_size: number of processes of the default process group. Above 1, all of them call the
            loss with the same number of rows.
        dist_impl: how processes exchange features; no effect, as all ways have the same values and
            gradients: those of one process on the whole batch, averaged over processes.
        chunk_size: if above 0, no score matrix is stored for the backward pass: the fused operator
            recomputes the scores, or without one, plain PyTorch processes this many rows at a time.
            The loss is the same.

    Raises:
        RuntimeError: `world_size` exceeds 1 without a process group.
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
        replaced = self._replaces(SigLipLoss, "get_logits", "get_ground_truth", "_loss")
        if self.world_size > 1:
            loss = siglip_over_ranks(self, inputs, replaced)
        else:
            if not replaced:
                refuse_unequal_rows(*checked(*inputs)[:2])
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
        image, text, scale, bias = checked(*inputs)
        sides = image.shape[0], text.shape[0]
        chunked = self.chunk_size > 0
        if negative_only or sides[0] != sides[1] or not has_operator(self, image, text):
            rows = self.chunk_size or sides[0]
            return sum_in_blocks(image, text, scale, bias, negative_only, rows) / sides[0]
        given = image, text, scale, bias, _DIAGONAL
        total = fused_sigmoid_total(*given, True, self.backend)
        if total is None:
            return fused_sigmoid(*given, self.backend, keep=not chunked).mean()
        return total
