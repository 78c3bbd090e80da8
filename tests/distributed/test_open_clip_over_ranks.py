"""open_clip's losses with `world_size` 2: its numbers on every rank, for every combination."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from compat_formulas import clip_loss, siglip_loss
from open_clip_on_ranks import Outcome, compute, features, is_installed, of_subclass, with_rows
from ranks import Ranks, RanksFailedError

CLIP = [{"local_loss": a, "gather_with_grad": b} for a in (False, True) for b in (False, True)]
SIGLIP: list[dict[str, Any]] = [{"dist_impl": d} for d in ("bidir", "shift", "reduce", "gather")]
COMBINATIONS = [("ClipLoss", o) for o in CLIP] + [("SigLipLoss", o) for o in SIGLIP]
installed = pytest.mark.skipif(not is_installed(), reason="needs open_clip_torch")


def close(found: list[Outcome], expected: list[Outcome]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def by_formula(kind: str, options: dict[str, Any]) -> list[Outcome]:
    """Return the original's values and gradients: of each rank's loss, as it differentiates it."""
    ranks = [features(rank, 3, torch.float64) for rank in (0, 1)]
    losses, local = [], options.get("local_loss")
    for rank, (image, text, scale, bias) in enumerate(ranks):
        every = []
        for own, side in ((image, 0), (text, 1)):
            if kind == "SigLipLoss" or options["gather_with_grad"]:
                every.append(torch.cat([leaves[side] for leaves in ranks]))
            else:
                rows = [leaves[side].detach() for leaves in ranks]
                rows[rank] = rows[rank] if local else own
                every.append(torch.cat(rows))
        if kind == "SigLipLoss":
            signs = -torch.ones(3, 6, dtype=torch.float64)
            signs[torch.arange(3), torch.arange(3) + 3 * rank] = 1
            logits = scale * image @ every[1].T + bias
            losses.append(-logsigmoid(signs * logits).sum() / 3)
        elif local:
            labels = torch.arange(3) + 3 * rank
            rows, columns = scale * image @ every[1].T, scale * text @ every[0].T
            entropy = torch.nn.functional.cross_entropy
            losses.append((entropy(rows, labels) + entropy(columns, labels)) / 2)
        else:
            losses.append(clip_loss(every[0], every[1], scale))
    leaves = [leaf for rank in ranks for leaf in rank]
    grads = torch.autograd.grad(sum(losses), leaves, allow_unused=True, materialize_grads=True)
    return [(losses[r].detach(), *grads[4 * r : 4 * r + 4]) for r in (0, 1)]


@pytest.mark.parametrize(("kind", "options"), COMBINATIONS)
def test_formula(two: Ranks, kind: str, options: dict[str, Any]) -> None:
    close(two.run(compute, kind, "ours", options), by_formula(kind, options))


@installed
@pytest.mark.parametrize(("kind", "options"), COMBINATIONS)
def test_original(two: Ranks, kind: str, options: dict[str, Any]) -> None:
    expected = two.run(compute, kind, "original", options)
    close(two.run(compute, kind, "ours", options), expected)


@pytest.mark.parametrize(("kind", "options"), COMBINATIONS)
def test_subclass_with_its_own_logits(two: Ranks, kind: str, options: dict[str, Any]) -> None:
    """A subclass gathers through `get_logits` or block by block."""
    close(two.run(of_subclass, kind, options), by_formula(kind, options))


def whole_batch(kind: str) -> list[Tensor]:
    """Return the gradients of one process on the whole batch."""
    ranks = [features(rank, 3, torch.float64) for rank in (0, 1)]
    leaves = [torch.cat([r[side].detach() for r in ranks]).requires_grad_() for side in (0, 1)]
    loss = (clip_loss if kind == "ClipLoss" else siglip_loss)(*leaves, *ranks[0][2:])
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(("kind", "options"), COMBINATIONS)
def test_which_gradients_are_those_of_the_whole_batch(
    two: Ranks, kind: str, options: dict[str, Any]
) -> None:
    """Averaged over ranks, they are unless gather_with_grad is False, as the docs say."""
    found = two.run(compute, kind, "ours", options)
    averaged = [torch.cat([own[side] for own in found]) / 2 for side in (1, 2)]
    pairs = list(zip(averaged, whole_batch(kind), strict=True))
    if kind == "SigLipLoss" or options["gather_with_grad"]:
        factor = 1.0
    elif not options["local_loss"]:
        factor = 0.5
    else:
        assert all(not torch.allclose(a, b, rtol=0.01) for a, b in pairs)
        return
    for mine, wanted in pairs:
        torch.testing.assert_close(mine, factor * wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 2, 8])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_siglip_in_chunks(two: Ranks, chunk_size: int, backend: str) -> None:
    options = {"chunk_size": chunk_size, "backend": backend}
    close(two.run(compute, "SigLipLoss", "ours", options), by_formula("SigLipLoss", {}))


@pytest.mark.parametrize("kind", ["ClipLoss", "SigLipLoss"])
def test_unequal_rows(two: Ranks, kind: str) -> None:
    """The original needs equal rows and hangs or fails without them."""
    with pytest.raises(RanksFailedError) as caught:
        two.run(with_rows, kind, (3, 2), (0, 1))
    one, other = caught.value.errors
    assert one == other
    assert one is not None and one.startswith(f"ValueError: {kind}: ranks have 3, 2 rows;")
    two.run(with_rows, kind, (3, 3), (0, 1))


@pytest.mark.parametrize("kind", ["ClipLoss", "SigLipLoss"])
def test_wrong_rank(two: Ranks, kind: str) -> None:
    with pytest.raises(RanksFailedError) as caught:
        two.run(with_rows, kind, (3, 3), (0, 0))
    one, other = caught.value.errors
    said = "rank 0 of 2 is rank 1 of 2 in the default process group; pass these numbers"
    assert other == f"ValueError: {kind}: {said}"
    assert one == f"RuntimeError: {kind}: rank 1 raised: {said}"
    two.run(with_rows, kind, (3, 3), (0, 1))
