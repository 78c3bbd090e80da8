"""The objective of each ``--loss`` name, as a module over a model's outputs.

`Objective.encode` turns a batch into the inputs of a loss, and `Objective.loss` is the loss only.
The split allows timing the loss on real batches without the encoders.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from batches import Batch
from itm_kernels import losses
from itm_kernels.backends import Backend
from itm_kernels.distributed import fetch
from itm_kernels.fusion import FusionHead
from itm_kernels.mining import HardNegativeSampler
from models import DualEncoder, Widths
from similarities import is_fine_grained, score

# The fusion head is kept small: much narrower than the embedding, and limited in words, because a
# few long captions would pad all the others.
FUSION_DIM, FUSION_WORDS = 64, 20


class Objective(nn.Module, ABC):
    """Base class of objectives, which own the parameters of training-only heads."""

    def encode(self, model: DualEncoder, batch: Batch) -> tuple[Tensor, ...]:
        """Return image and text embeddings, each ``[N, D]``."""
        return model.embeddings(batch.images, batch.words, batch.rows)

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


class ScoreObjective(Objective):
    """A loss of the scores of regions and words.

    InfoCMR and IMC also take the pooled embeddings, for synthetic negatives and for the constraint.

    Args:
        criterion: a loss with `from_scores`.
        similarity: one of `similarities.SIMILARITIES` that is not "global".
        backend: backend of the scores.
    """

    def __init__(self, criterion: nn.Module, similarity: str, *, backend: Backend) -> None:
        super().__init__()
        self.criterion = criterion
        self.similarity = similarity
        self.backend = backend

    def encode(self, model: DualEncoder, batch: Batch) -> tuple[Tensor, ...]:
        """Return regions, words, the numbers of words, and the pooled embeddings of both."""
        image = model.image_tokens(batch.images, batch.rows)
        text = model.text_tokens(batch.words, batch.rows)
        counts = (~text.padding).sum(1)
        return image.tokens, text.tokens, counts, image.embedding, text.embedding

    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of the scores."""
        regions, words, counts, image, text = encoded
        scores = score(self.similarity, regions, words, counts, backend=self.backend)
        criterion: Any = self.criterion
        both = {"image_ids": ids, "text_ids": ids}
        if isinstance(criterion, losses.InfoCMRLoss):
            pooled = {"image": image, "text": text}
            return criterion.from_scores(scores, **pooled, **both, generator=generator)
        if isinstance(criterion, losses.IMCLoss):
            return criterion.from_scores(scores, image, text, **both)
        return criterion.from_scores(scores, **both)


class MatchingObjective(Objective):
    """InfoNCE plus image-text matching with mined hard negatives, as ALBEF.

    Args:
        dim: size of the embedding.
        backend: backend of both parts.
        group: processes that share a batch.
    """

    def __init__(self, dim: int, *, backend: Backend, group: ProcessGroup | None) -> None:
        super().__init__()
        self.group = group
        self.contrast = losses.InfoNCELoss(backend=backend, group=group)
        sampler = HardNegativeSampler(backend=backend)
        self.matching = losses.ITMLoss(sampler=sampler, group=group)
        # The product contains the cosine; the distance shows in which components a pair differs.
        self.match = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 2))

    def loss(self, encoded: tuple[Tensor, ...], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return the contrastive loss plus the matching loss."""
        image, text = encoded

        def match(image_index: Tensor, text_index: Tensor) -> Tensor:
            left = fetch(image, image_index, group=self.group)
            right = fetch(text, text_index, group=self.group)
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
        group: processes that share a batch.
    """

    def __init__(self, widths: Widths, *, backend: Backend, group: ProcessGroup | None) -> None:
        super().__init__()
        self.narrow_image = nn.Linear(widths.image_tokens, FUSION_DIM)
        self.narrow_text = nn.Linear(widths.text_tokens, FUSION_DIM)
        self.fuse = FusionHead(FUSION_DIM, heads=4)
        self.criterion = losses.ITOLoss(backend=backend, group=group)

    def encode(self, model: DualEncoder, batch: Batch) -> tuple[Tensor, ...]:
        """Return images, texts and fused vectors, each ``[2, N, .]``."""
        images = [model.image_tokens(batch.images, batch.rows) for _ in range(2)]
        texts = [model.text_tokens(words, batch.rows) for words in (batch.words, batch.other_words)]
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


_CRITERIA: dict[str, Callable[..., nn.Module]] = {
    "sum_of_hinges": losses.SumOfHingesLoss,
    "max_of_hinges": losses.MaxOfHingesLoss,
    "imc": losses.IMCLoss,
    "info_cmr": losses.InfoCMRLoss,
    "info_nce": losses.InfoNCELoss,
    "sigmoid": partial(losses.SigmoidLoss, learnable=True),
}
LOSS_NAMES = (*_CRITERIA, "itm", "ito")


def build_objective(
    name: str,
    widths: Widths,
    *,
    backend: Backend = "auto",
    group: ProcessGroup | None = None,
    similarity: str | None = None,
) -> Objective:
    """Build the objective of a ``--loss`` name.

    Args:
        name: one of `LOSS_NAMES`.
        widths: output sizes of the encoders.
        backend: backend of the losses.
        group: processes that share a batch.
        similarity: one of `similarities.SIMILARITIES`; None: embeddings without regions.

    Returns:
        The objective. Heads, if it has any, are newly initialised.
    """
    if name == "itm":
        return MatchingObjective(widths.embedding, backend=backend, group=group)
    if name == "ito":
        return FusionObjective(widths, backend=backend, group=group)
    criterion = _CRITERIA[name](backend=backend, group=group)
    if similarity is not None and is_fine_grained(similarity):
        return ScoreObjective(criterion, similarity, backend=backend)
    return InfoCmrObjective(criterion) if name == "info_cmr" else PairObjective(criterion)


class Step(nn.Module):
    """The loss of a batch, with all parameters of a run."""

    def __init__(self, model: DualEncoder, *objectives: Objective) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleList(objectives)

    def forward(self, number: int, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch by the objective of that number."""
        loss: Tensor = self.objectives[number](self.model, batch, generator)
        return loss
