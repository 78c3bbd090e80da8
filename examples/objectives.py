"""The objective of each ``--loss`` name, as a module over a model's outputs.

`Objective.encode` turns a batch into the inputs of a loss, and `Objective.loss` is the loss only.
The split allows timing the loss on real batches without the encoders.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from itm_kernels import losses
from itm_kernels.backends import Backend
from itm_kernels.fusion import FusionHead
from itm_kernels.mining import HardNegativeSampler
from models import DualEncoder, Widths

# The fusion head is kept small: much narrower than the embedding, and limited in words, because a
# few long captions would pad all the others.
FUSION_DIM, FUSION_WORDS = 64, 20


class Batch(NamedTuple):
    """N distinct images, each with two of its captions."""

    images: Tensor  # [N, ...]
    words: Tensor  # [N, L]
    other_words: Tensor  # [N, L'], the second caption; only `ito` reads it
    ids: Tensor  # [N], image numbers


class Objective(nn.Module, ABC):
    """Base class of objectives, which own the parameters of training-only heads."""

    def encode(self, model: DualEncoder, batch: Batch) -> tuple[Tensor, ...]:
        """Return image and text embeddings, each ``[N, D]``."""
        return model.image(batch.images).embedding, model.text(batch.words).embedding

    @abstractmethod
    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return the scalar loss of the outputs of `encode`."""

    def forward(self, model: DualEncoder, batch: Batch, generator: torch.Generator) -> Tensor:
        """Encode a batch and return its scalar loss."""
        return self.loss(self.encode(model, batch), batch.ids, generator)


class PairObjective(Objective):
    """A loss of the two embeddings only."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return the value of the criterion."""
        image, text = encoded
        return self.criterion(image, text, image_ids=ids, text_ids=ids)


class InfoCmrObjective(PairObjective):
    """InfoCMR, with clusters and noise vectors drawn from the run's generator."""

    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return the InfoCMR loss."""
        image, text = encoded
        return self.criterion(image, text, image_ids=ids, text_ids=ids, generator=generator)


class MatchingObjective(Objective):
    """InfoNCE plus image-text matching with mined hard negatives, as ALBEF.

    Args:
        dim: size of the embedding.
        backend: backend of both parts.
    """

    def __init__(self, dim: int, *, backend: Backend) -> None:
        super().__init__()
        self.contrast = losses.InfoNCELoss(backend=backend)
        self.matching = losses.ITMLoss(sampler=HardNegativeSampler(backend=backend))
        # The product contains the cosine; the distance shows in which components a pair differs.
        self.match = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 2))

    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return the contrastive loss plus the matching loss."""
        image, text = encoded

        def match(image_index: Tensor, text_index: Tensor) -> Tensor:
            left, right = image[image_index], text[text_index]
            return self.match(torch.cat([left * right, (left - right).abs()], dim=1))

        contrast = self.contrast(image, text, image_ids=ids, text_ids=ids)
        return contrast + self.matching(
            image, text, match, image_ids=ids, text_ids=ids, generator=generator
        )


class FusionObjective(Objective):
    """ITO: two views of each image, two captions, and a fusion head that is used in training only.

    A view is one pass through the image encoder in training mode. Dropout (features) or shifts
    (pixels) differ between passes.

    Args:
        widths: output sizes of the encoders.
        backend: backend of the loss.
    """

    def __init__(self, widths: Widths, *, backend: Backend) -> None:
        super().__init__()
        self.narrow_image = nn.Linear(widths.image_tokens, FUSION_DIM)
        self.narrow_text = nn.Linear(widths.text_tokens, FUSION_DIM)
        self.fuse = FusionHead(FUSION_DIM, heads=4)
        self.criterion = losses.ITOLoss(backend=backend)

    def encode(self, model: DualEncoder, batch: Batch) -> tuple[Tensor, ...]:
        """Return images, texts and fused vectors, each ``[2, N, .]``."""
        images = [model.image(batch.images) for _ in range(2)]
        texts = [model.text(words) for words in (batch.words, batch.other_words)]
        fused = [
            self.fuse(
                self.narrow_image(image.tokens),
                self.narrow_text(text.tokens[:, :FUSION_WORDS]),
                text.padding[:, :FUSION_WORDS],
            )
            for image, text in zip(images, texts, strict=True)
        ]
        return (
            torch.stack([image.embedding for image in images]),
            torch.stack([text.embedding for text in texts]),
            torch.stack(fused),
        )

    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return alignment plus fusion loss; ids are unused, because a batch's images differ."""
        return self.criterion(*encoded)


_BUILDERS: dict[str, Callable[[Widths, Backend], Objective]] = {
    "sum_of_hinges": lambda _, backend: PairObjective(losses.SumOfHingesLoss(backend=backend)),
    "max_of_hinges": lambda _, backend: PairObjective(losses.MaxOfHingesLoss(backend=backend)),
    "imc": lambda _, backend: PairObjective(losses.IMCLoss(backend=backend)),
    "info_cmr": lambda _, backend: InfoCmrObjective(losses.InfoCMRLoss(backend=backend)),
    "info_nce": lambda _, backend: PairObjective(losses.InfoNCELoss(backend=backend)),
    "sigmoid": lambda _, backend: PairObjective(
        losses.SigmoidLoss(learnable=True, backend=backend)
    ),
    "itm": lambda widths, backend: MatchingObjective(widths.embedding, backend=backend),
    "ito": lambda widths, backend: FusionObjective(widths, backend=backend),
}
LOSS_NAMES = tuple(_BUILDERS)


def build_objective(name: str, widths: Widths, *, backend: Backend = "auto") -> Objective:
    """Build the objective of a ``--loss`` name.

    Args:
        name: one of `LOSS_NAMES`.
        widths: output sizes of the encoders.
        backend: backend of the losses.

    Returns:
        The objective. Heads, if it has any, are newly initialised.
    """
    return _BUILDERS[name](widths, backend)
