"""Sampling of hard negatives for image-text matching."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks, _positives
from itm_kernels._options import Backend, Checked, Strategy, number_or_tensor, word
from itm_kernels._public import UnnamedValueError, public
from itm_kernels.ops._sample_negatives import fused_sample_negatives, sample_negatives_from_scores

_temperature = number_or_tensor(above=0)


class HardNegatives(NamedTuple):
    """One negative per anchor; -1 for an anchor without a negative.

    For a batch over ranks, the anchors are a rank's own rows, and indices are global.
    """

    text_index: Tensor  # [N] int64, a negative text for every image
    image_index: Tensor  # [M] int64, a negative image for every text


class HardNegativeSampler(Checked):
    r"""Draw one negative text per image and one negative image per text.

    .. math:: p(j | i) = \mathrm{softmax}_j (s_{ij} / t)

    over valid negatives: pairs that share an id are masked before the softmax, not after it.
    Options are attributes: they may be changed between calls, and are checked when they are set.

    Args:
        strategy: `"multinomial"`, `"hardest"` (its zero-temperature limit), or `"uniform"`.
        temperature: t > 0: a number, or a tensor of one element, whose value is not read by the
            host (it may be learnt by the model; negatives have no gradient).
        backend: `"auto"`, `"reference"`, `"native"` or `"triton"`.

    Raises:
        TypeError: an argument is not a floating-point tensor, or ids are not integers.
        ValueError: shapes, devices, ids or options do not fit.

    Source: Li et al., ALBEF, 2021, section 3.2.

    >>> import torch
    >>> scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
    >>> HardNegativeSampler("hardest")(scores, torch.eye(3)).text_index
    tensor([1, 2, 0])
    """

    checks = {
        "strategy": word(Strategy),
        "temperature": _temperature,
        "backend": word(Backend),
    }

    def __init__(
        self,
        strategy: Strategy = "multinomial",
        *,
        temperature: float | Tensor = 0.07,
        backend: Backend = "auto",
    ) -> None:
        self.strategy = strategy
        self.temperature = temperature
        self.backend = backend

    @public
    def __call__(
        self,
        image: Tensor,  # [N, D], scored by dot product without normalisation
        text: Tensor,  # [M, D]; M = N without ids
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        temperature: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardNegatives:
        """Return the indices of the negatives, without gradient.

        A temperature passed here replaces the sampler's own.
        """
        image, text = _checks.embeddings(image=image, text=text)
        _checks.generator(generator)
        pairs = _positives.resolve(image, text, image_ids, text_ids)
        ids = pairs.image_ids, pairs.text_ids
        return self.draw(image, text, *ids, self._temperature(temperature), generator)

    def draw(
        self,
        image: Tensor,  # [N, D]
        text: Tensor,  # [M, D]
        image_ids: Tensor | None,  # [N] int64, on the device of the rows
        text_ids: Tensor | None,  # [M]
        temperature: float | Tensor,
        generator: torch.Generator | None,
    ) -> HardNegatives:
        """Return the same for checked arguments; ids of one side may be absent on the other."""
        rows, ids = (image, text), (image_ids, text_ids)
        found = fused_sample_negatives(
            *rows, *ids, self.strategy, temperature, generator, self.backend
        )
        return HardNegatives(*found)

    @public
    def from_scores(
        self,
        image_to_text: Tensor,  # [N, M], scores of texts for every image; M = N without ids
        text_to_image: Tensor | None = None,  # [M, N], scores of images for every text
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        temperature: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> HardNegatives:
        """Draw negatives from given scores, one matrix per direction.

        The two matrices of ALBEF differ: each compares the features of one encoder with those of a
        momentum encoder of the other modality. Both are already divided by the temperature, so pass
        1 here. Without `text_to_image`, both directions use `image_to_text`. Every backend runs
        plain PyTorch here, because the matrices that kernels avoid storing exist already.

        >>> import torch
        >>> scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]])
        >>> HardNegativeSampler("hardest").from_scores(scores, scores).image_index
        tensor([1, 2, 0])
        """
        _checks.floating("image_to_text", image_to_text, "[N, M]")
        _checks.generator(generator)
        N, M = image_to_text.shape
        if image_ids is None and text_ids is None and N != M:
            raise UnnamedValueError(
                f"image_to_text [{N}, {M}] is not square; "
                "pass image_ids and text_ids for unequal batches"
            )
        if text_to_image is None:
            text_to_image = image_to_text.T
        _checks.floating("text_to_image", text_to_image, "[N, M]")
        if text_to_image.shape != (M, N) or text_to_image.device != image_to_text.device:
            raise UnnamedValueError(
                f"text_to_image must be [{M}, {N}] on {image_to_text.device}, one row per "
                f"text, got {_checks.describe(text_to_image)}"
            )
        pairs = _positives.resolve(image_to_text, text_to_image, image_ids, text_ids)
        text_index, image_index = sample_negatives_from_scores(
            image_to_text,
            text_to_image,
            pairs.image_ids,
            pairs.text_ids,
            self.strategy,
            self._temperature(temperature),
            generator,
        )
        return HardNegatives(text_index, image_index)

    def _temperature(self, given: float | Tensor | None) -> float | Tensor:
        return self.temperature if given is None else _temperature("temperature", given)

    def __repr__(self) -> str:
        """Show the options."""
        temperature = _checks.shown(self.temperature)
        return (
            f"HardNegativeSampler({self.strategy!r}, temperature={temperature}, "
            f"backend={self.backend!r})"
        )
