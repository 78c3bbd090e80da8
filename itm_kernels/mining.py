"""Mining of hard negatives for image-text matching."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks, _pairs
from itm_kernels._arguments import options_by_name
from itm_kernels._options import Backend, Checked, Strategy, number, word
from itm_kernels.ops.sample_negatives import run


class HardNegatives(NamedTuple):
    """One negative per anchor; -1 where it has none."""

    text_index: Tensor  # [N] int64, a negative text for every image
    image_index: Tensor  # [M] int64, a negative image for every text


class HardNegativeSampler(Checked):
    r"""Draw one negative text per image and one negative image per text.

    .. math:: p(j | i) = \mathrm{softmax}_j (s_{ij} / t)

    over valid negatives: same-id pairs are masked before the softmax, not after it.
    Options are attributes, which may be set between calls and are checked then.

    Args:
        strategy: `"multinomial"`, `"hardest"` (its zero-temperature limit), or `"uniform"`.
        temperature: t > 0.
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Raises:
        TypeError: an argument is no floating-point tensor, or ids are no integers.
        ValueError: shapes, devices, ids or options do not fit.

    Source: Li et al., ALBEF, 2021, section 3.2.

    >>> import torch
    >>> scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
    >>> HardNegativeSampler("hardest")(scores, torch.eye(3)).text_index
    tensor([1, 2, 0])
    """

    checks = {
        "strategy": word(Strategy),
        "temperature": number(above=0),
        "backend": word(Backend),
    }

    def __init__(
        self,
        strategy: Strategy = "multinomial",
        *,
        temperature: float = 0.07,
        backend: Backend = "auto",
    ) -> None:
        self.strategy = strategy
        self.temperature = temperature
        self.backend = backend

    @options_by_name
    def __call__(
        self,
        image: Tensor,  # [N, D], scored by dot product as it is
        text: Tensor,  # [M, D]; M = N without ids
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardNegatives:
        """Return the indices of the negatives, without gradient."""
        name = "HardNegativeSampler"
        image, text = _checks.embeddings(name, image=image, text=text)
        pairs = _pairs.resolve(name, image, text, image_ids, text_ids)
        text_index, image_index = run(
            image,
            text,
            pairs.image_ids,
            pairs.text_ids,
            self.strategy,
            self.temperature,
            generator,
            name,
            self.backend,
        )
        return HardNegatives(text_index, image_index)

    def __repr__(self) -> str:
        """Show the options."""
        return (
            f"HardNegativeSampler({self.strategy!r}, temperature={self.temperature}, "
            f"backend={self.backend!r})"
        )
