"""One mined negative per anchor, in both directions."""

import torch
from torch import Tensor

from itm_kernels import reference
from itm_kernels._autocast import outside_autocast
from itm_kernels.backends import resolve
from itm_kernels.ops._define import define, index_empty, operator


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


# seed [2] int64: key and counter of the noise, so that a kernel draws it where it is used.
define(
    "sample_negatives",
    "(Tensor image, Tensor text, Tensor? image_ids, Tensor? text_ids, str strategy, "
    "float temperature, Tensor seed) -> (Tensor text_index, Tensor image_index)",
    _fake,
)


@outside_autocast
@torch.no_grad()
def run(
    image: Tensor,  # [N, D]
    text: Tensor,  # [M, D]
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    strategy: str,
    temperature: float,
    generator: torch.Generator | None,
    function: str,
    backend: str,
) -> tuple[Tensor, Tensor]:  # [N], [M]
    """Draw negatives for checked arguments, on behalf of a public function."""
    inputs = image, text, image_ids, text_ids, strategy, float(temperature)
    namespace = resolve(function, "sample_negatives", image, backend)
    if namespace is None:
        return reference.sample_negatives(*inputs, generator)
    seed = torch.randint(2**63 - 1, (2,), generator=generator, device=image.device)
    return operator(namespace, "sample_negatives")(*inputs, seed)
