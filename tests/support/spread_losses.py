"""The losses of `loss_cases` on a batch that is spread over ranks: what every rank runs."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from itm_kernels import _policies
from loss_cases import BY_NAME, batch
from ranks import Ranks


class Spread(NamedTuple):
    """One call of a loss over ranks."""

    case: str
    images: tuple[int, ...]  # rows of every rank
    texts: tuple[int, ...] | None = None  # None: as images
    ids: bool = False
    options: tuple[tuple[str, Any], ...] = ()  # attributes of the Module
    dtype: torch.dtype = torch.float64
    D: int = 7
    backend: str = "auto"


class Result(NamedTuple):
    """Value and gradients: of the rank's own rows, and of parameters."""

    value: Tensor
    image: Tensor
    text: Tensor
    parameters: list[Tensor]


def inputs(spread: Spread) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the global batch."""
    N, M = sum(spread.images), sum(spread.texts or spread.images)
    image, _ = batch(N, spread.D, spread.dtype)
    _, text = batch(M, spread.D, spread.dtype, seed=1)
    # Correlated, so that hinges, bands and softmax are not trivial.
    owner = (torch.arange(M) * 7 + 3) % N if spread.ids else torch.arange(M)
    text = torch.nn.functional.normalize(image[owner].detach() + text.detach(), dim=1)
    ids = {"image_ids": 10 + torch.arange(N), "text_ids": 10 + owner} if spread.ids else {}
    return image.detach(), text, ids


def loss_of(spread: Spread, group: Any, v: slice, c: slice) -> tuple[Tensor, list[Tensor]]:
    """Compute the loss from the rows of two slices; return it with image, text and parameters."""
    image, text, ids = inputs(spread)
    image, text = image[v].clone().requires_grad_(), text[c].clone().requires_grad_()
    own = {name: i[v if name == "image_ids" else c] for name, i in ids.items()}
    case = BY_NAME[spread.case]
    torch.manual_seed(0)
    module = case.build(spread.backend).to(spread.dtype)
    for name, value in spread.options:
        if group is not None or name not in ("gradients", "exchange"):
            setattr(module, name, value)
    if group is not None:
        module.group = group
    return case.apply(module, image, text, **own), [image, text, *module.parameters()]


def compute(spread: Spread, group: Any, v: slice, c: slice) -> Result:
    """Compute the loss and its gradients from the rows of two slices."""
    value, leaves = loss_of(spread, group, v, c)
    value.sum().backward()
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
    return Result(value.detach(), *grads[:2], grads[2:])


def own_slices(spread: Spread, rank: int) -> list[slice]:
    """Return the images and the texts of a rank."""
    slices = []
    for counts in (spread.images, spread.texts or spread.images):
        first = sum(counts[:rank])
        slices.append(slice(first, first + counts[rank]))
    return slices


def on_rank(group: Any, spread: Spread) -> Result:
    """Compute a rank's part."""
    return compute(spread, group, *own_slices(spread, group.rank()))


def on_rank_in_parts(group: Any, spread: Spread) -> Result:
    """Compute a rank's part; a ring cuts the blocks of rows into parts of two rows."""
    with patch.object(_policies, "RING_ROWS", 2):
        return on_rank(group, spread)


def check(
    ranks: Ranks,
    spread: Spread,
    tolerance: float = 1e-10,
    function: Callable[..., Result] = on_rank,
) -> None:
    """Compare all ranks with one process on the whole batch."""
    W = len(spread.images)
    found = ranks.run(function, spread, width=W)
    expected = compute(spread, None, slice(None), slice(None))
    options = dict(spread.options)
    values = [result.value for result in found]
    if options.get("reduction") == "none":
        values = [torch.cat(values)]
    assert all(torch.equal(value, values[0]) for value in values), values
    torch.testing.assert_close(values[0], expected.value, rtol=tolerance, atol=tolerance)
    factor = W if options.get("gradients", "mean") == "mean" else 1
    for name in ("image", "text"):
        together = torch.cat([getattr(result, name) for result in found])
        torch.testing.assert_close(
            together, factor * getattr(expected, name), rtol=tolerance, atol=tolerance
        )
    for parts in zip(expected.parameters, *(result.parameters for result in found), strict=True):
        torch.testing.assert_close(
            sum(parts[1:]), factor * parts[0], rtol=tolerance, atol=tolerance
        )
