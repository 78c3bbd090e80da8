"""One mined negative per anchor, in both directions."""

import torch
from torch import Tensor

from itm_kernels.reference._pairs import same_id
from itm_kernels.reference._rows import wide


def sample_negatives(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
    strategy: str,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw from softmax(s / temperature) over valid negatives (multinomial), its limit, or evenly.

    The largest logit + Gumbel noise is a draw from the softmax. Without a negative, index -1.
    """
    scores = wide(image) @ wide(text).T
    return sample_negatives_from_scores(
        scores, scores, image_ids, text_ids, strategy, temperature, generator
    )


def sample_negatives_from_scores(
    image_to_text: Tensor,  # [N, M], by which images choose texts
    text_to_image: Tensor,  # [N, M], by which texts choose images
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw by scores that may differ between the directions."""
    same = same_id(image_to_text, image_ids, text_ids)

    def draw(scores: Tensor, dim: int) -> Tensor:
        logits = torch.zeros_like(scores) if strategy == "uniform" else scores / temperature
        noise = torch.zeros_like(logits)
        if strategy != "hardest":
            noise = -noise.exponential_(generator=generator).log()
        index = (logits + noise).masked_fill(same, -torch.inf).argmax(dim)
        return index.masked_fill(same.all(dim), -1)

    return draw(image_to_text, 1), draw(text_to_image, 0)
