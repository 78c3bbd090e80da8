"""The state that open_clip's losses share, and the checks of their arguments."""

from typing import Any

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedValueError
from itm_kernels.compat._drop_in import DropIn
from itm_kernels.ops._log_sum_exp import as_scalar


class FeatureLoss(DropIn):
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
        return super()._checked(name, value)


def refuse_unequal_rows(image_features: Tensor, text_features: Tensor) -> None:
    """Raise ValueError unless there is one text per image."""
    if len(image_features) != len(text_features):
        raise UnnamedValueError(
            f"image_features {list(image_features.shape)} and text_features "
            f"{list(text_features.shape)} differ in rows; pass one text per image"
        )


def checked(
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
