"""One sampled negative per anchor, in both directions."""

import torch
from torch import Tensor

from itm_kernels.reference._positives import hardest, same_id
from itm_kernels.reference._precision import wide


def sample_negatives(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,  # [N]
    text_ids: Tensor | None,  # [M]
    strategy: str,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw from softmax(s / temperature) of negatives, or take the hardest, or draw uniformly.

    The maximum of logit + Gumbel noise is a draw from the softmax. s / t + noise and s + t noise
    have their maximum at the same index; the choice between them keeps t and 1 / t within the range
    of fp32. Without negatives the index is -1.
    """
    scores = wide(image) @ wide(text).T
    return sample_negatives_from_scores(
        scores, scores, image_ids, text_ids, strategy, temperature, generator
    )


def sample_negatives_from_scores(
    image_to_text: Tensor,  # [N, M] scores by which images choose texts
    text_to_image: Tensor,  # [N, M] scores by which texts choose images
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw as `sample_negatives`, by scores that may differ between the directions."""
    same = same_id(image_to_text, image_ids, text_ids)

    def draw(scores: Tensor, dim: int) -> Tensor:
        if strategy == "hardest":
            return hardest(scores, same, dim)[1]
        noise = -torch.empty_like(scores).exponential_(generator=generator).log()
        if strategy == "uniform":
            return hardest(noise, same, dim)[1]
        if temperature > 1:
            return hardest(scores / temperature + noise, same, dim)[1]
        return hardest(scores + temperature * noise, same, dim)[1]

    return draw(image_to_text, 1), draw(text_to_image, 0)
