"""One sampled negative per anchor, in both directions."""

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, index_empty, torch_op
from itm_kernels.reference._precision import wide


def _fake(
    image: Tensor,
    text: Tensor,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    return index_empty(image, image.shape[0]), index_empty(text, text.shape[0])


# seed [2] int64: key and counter of the noise, which kernels generate where they use it.
define(
    "sample_negatives",
    "(Tensor image, Tensor text, Tensor? image_ids, Tensor? text_ids, str strategy, "
    "float temperature, Tensor seed) -> (Tensor text_index, Tensor image_index)",
    _fake,
)


@outside_autocast
@torch.no_grad()
def fused_sample_negatives(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float | Tensor,
    generator: torch.Generator | None,
    backend: str,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw negatives for checked arguments."""
    image, number = _over_temperature(image, strategy, temperature)
    inputs = image, text.to(image.dtype), image_ids, text_ids, strategy, number
    namespace = resolve("sample_negatives", image, backend)
    if namespace is None:
        return reference.sample_negatives(*inputs, generator)
    seed = torch.randint(2**63 - 1, (2,), generator=generator, device=image.device)
    return torch_op(namespace, "sample_negatives")(*inputs, seed)


@outside_autocast
@torch.no_grad()
def sample_negatives_from_scores(
    image_to_text: Tensor,  # [N, M]
    text_to_image: Tensor,  # [M, N]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float | Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw negatives by given score matrices, in plain PyTorch."""
    sides = wide(image_to_text), wide(text_to_image).T
    (a, number), (b, _) = (_over_temperature(side, strategy, temperature) for side in sides)
    return reference.sample_negatives_from_scores(
        a, b, image_ids, text_ids, strategy, number, generator
    )


def _over_temperature(
    x: Tensor, strategy: str, temperature: float | Tensor
) -> tuple[Tensor, float]:
    """Return x, divided by a learnt temperature, and the temperature that remains to divide by.

    Scores are linear in x. A learnt temperature may be on a GPU, and to read it would synchronise.
    """
    if not isinstance(temperature, Tensor):
        return x, float(temperature)
    if strategy != "multinomial":  # independent of the temperature
        return x, 1.0
    x = wide(x)
    return x / temperature.detach().reshape(()).to(x.device, x.dtype, non_blocking=True), 1.0
