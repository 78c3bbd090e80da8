"""Helpers for tests of retrieval: embeddings, and the size of the largest tensor."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def vsepp_ids(num_images: int, texts_per_image: int) -> tuple[Tensor, Tensor]:
    image_ids = torch.arange(num_images)
    return image_ids, image_ids.repeat_interleave(texts_per_image)


def related(
    num_images: int, texts_per_image: int, dim: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Texts around their image, near enough that some ranks are 1 and some are not."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(num_images, dim, generator=generator)
    noise = torch.randn(num_images * texts_per_image, dim, generator=generator)
    return image, image.repeat_interleave(texts_per_image, 0) + noise


class LargestOutput(TorchDispatchMode):
    """Records the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result
