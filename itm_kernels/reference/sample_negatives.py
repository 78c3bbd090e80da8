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
    same = same_id(scores, image_ids, text_ids)
    logits = torch.zeros_like(scores) if strategy == "uniform" else scores / temperature

    def draw(dim: int) -> Tensor:
        noise = torch.zeros_like(logits)
        if strategy != "hardest":
            noise = -noise.exponential_(generator=generator).log()
        index = (logits + noise).masked_fill(same, -torch.inf).argmax(dim)
        return index.masked_fill(same.all(dim), -1)

    return draw(1), draw(0)
