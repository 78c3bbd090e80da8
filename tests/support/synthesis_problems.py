"""Problems, results and the error rule for tests of hard negative synthesis."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from itm_kernels.ops._rbf_synthesis import (
    SynthesisOptions,
    fused_rbf_synthesis,
    fused_rbf_synthesis_logits,
)

WEIGHTS = ("kam", "attention")
LAYOUTS = ("shared", "per_anchor")


def in_every_form(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for both weights and layouts, for vectors and for logits."""
    test = pytest.mark.parametrize("weights", WEIGHTS)(test)
    test = pytest.mark.parametrize("layout", LAYOUTS)(test)
    return pytest.mark.parametrize("logits", [False, True], ids=["vectors", "logits"])(test)


class Problem(NamedTuple):
    """Arguments of a synthesis, with a gradient for what it returns."""

    anchors: Tensor  # [N, D]
    members: Tensor  # [M, D]
    assignment: Tensor  # [M] or [N, M]
    num_clusters: int
    ids: dict[str, Tensor]
    grad: Tensor  # [N, K, D]

    def to(self, dtype: torch.dtype) -> "Problem":
        return self._replace(anchors=self.anchors.to(dtype), members=self.members.to(dtype))


def problem(
    N: int, M: int, D: int, K: int, layout: str = "shared", ids: bool = True, seed: int = 0
) -> Problem:
    """Draw unit rows; one cluster stays empty, some members are in none, ids repeat."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (M,) if layout == "shared" else (N, M)
    assignment = torch.randint(-1, max(1, K - 1), shape, generator=generator)
    names = {"anchor_ids": N, "member_ids": M}
    known = {
        name: torch.randint(0, max(2, M // 2), (size,), generator=generator)
        for name, size in names.items()
    }
    anchors, members = normalize(draw(N, D)), normalize(draw(M, D))
    return Problem(anchors, members, assignment, K, known if ids else {}, draw(N, K, D))


def results(
    case: Problem,
    backend: str,
    weights: str,
    logits: bool,
    detach: bool = False,
    sigma: float = 0.5,
    ridge: float = 1e-4,
) -> list[Tensor]:
    """Return vectors or cosines, what is valid, and the gradients of anchors and members."""
    q, x = (t.detach().requires_grad_() for t in (case.anchors, case.members))
    ids = case.ids.get("anchor_ids"), case.ids.get("member_ids")
    inputs = q, x, case.assignment, *ids, SynthesisOptions(case.num_clusters, sigma, weights, ridge)
    if logits:
        found, valid = fused_rbf_synthesis_logits(*inputs, detach, backend)
    else:
        found, valid = fused_rbf_synthesis(*inputs, backend)
    grad = (case.grad[..., 0] if logits else case.grad).to(found.dtype)
    grads = torch.autograd.grad(found, (q, x), grad, allow_unused=True, materialize_grads=True)
    return [found.detach(), valid, *grads]


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Equal in fp64 up to the condition of a kernel matrix."""
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def furthest(found: Tensor, wanted: Tensor) -> float:
    return (found.double() - wanted.double()).abs().max().item()


def hold_to_the_rule(
    case: Problem, dtype: torch.dtype, *arguments, backend: str = "native", **options
) -> None:
    """Error against fp64: at most twice that of the formula in the same precision."""
    hold_on_average([case], dtype, *arguments, backend=backend, **options)


def hold_on_average(
    cases: list[Problem], dtype: torch.dtype, *arguments, backend: str = "native", **options
) -> None:
    """Hold the mean error over several draws to the rule.

    Where rounding is multiplied by thousands, the errors of one draw differ by factors between
    two equally good computations, and from one processor's products to another's.
    """
    errors = []
    for case in cases:
        rounded = case.to(dtype)
        exact, eager, ours = (
            results(rows, name, *arguments, **options)
            for rows, name in (
                (rounded.to(torch.float64), "reference"),
                (rounded, "reference"),
                (rounded, backend),
            )
        )
        assert torch.equal(ours[1], exact[1])
        assert [t.dtype for t in ours] == [t.dtype for t in eager]
        errors.append(
            [
                (
                    furthest(found, wanted),
                    furthest(theirs, wanted),
                    max(1.0, wanted.double().abs().max().item()),
                )
                for wanted, theirs, found in zip(exact, eager, ours, strict=True)
            ]
        )
    for of_ours, of_eager, size in torch.tensor(errors, dtype=torch.float64).mean(0):
        assert of_ours <= 2 * of_eager + 64 * torch.finfo(dtype).eps * size


def near_duplicates(N: int, M: int, D: int, K: int, layout: str, seed: int = 0) -> Problem:
    """Return a problem whose members come in near-duplicates: kam's weights are thousands."""
    case = problem(N, M, D, K, layout, seed=seed)
    half = M // 2
    case.members[half:] = normalize(case.members[:half] + 1e-3 * case.members[half:])
    case.assignment[..., half:] = case.assignment[..., :half]
    return case


def strided(case: Problem) -> Problem:
    """Return the same problem with elements of rows, clusters, ids and gradients apart."""
    M, D = case.members.shape
    return case._replace(
        anchors=case.anchors.T.contiguous().T,
        members=case.members.new_empty(M, 2 * D)[:, ::2].copy_(case.members),
        assignment=torch.stack([case.assignment] * 2, -1)[..., 1],
        ids={name: torch.stack([ids] * 2, 1)[:, 0] for name, ids in case.ids.items()},
        grad=case.grad.transpose(0, 2).contiguous().transpose(0, 2),
    )


def hold_duplicates_in_their_cluster(backend: str, layout: str, logits: bool) -> None:
    """Without a ridge equal members are a singular system: NaN in their cluster alone."""
    case = problem(5, 30, 37, 3, layout, ids=False)
    case.assignment[..., :] = torch.arange(30) % 2  # cluster 2 is empty
    case.members[28] = case.members[4]
    found = results(case, backend, "kam", logits, ridge=0.0)[0]
    assert found[:, 0].isnan().all()
    assert found[:, 1].isfinite().all()
    assert (found[:, 2] == 0).all()
    assert results(case, backend, "kam", logits)[0].isfinite().all()


def hold_nan_where_it_belongs(
    backend: str, weights: str, layout: str, logits: bool, alone: bool = True
) -> None:
    """A row that is not finite shows in what depends on it; an empty cluster stays 0.

    With alone, it shows in no other cluster.
    """
    for bad in (torch.nan, torch.inf):
        case = problem(5, 12, 7, 3, layout, ids=False)
        case.assignment[..., :] = torch.arange(12) % 2
        case.anchors[3, 2] = bad
        found = results(case, backend, weights, logits)
        assert found[0][3, :2].isnan().all()
        assert found[0][:3].isfinite().all()
        assert found[2][3].isnan().any()
        assert found[3].isnan().any()
        case = problem(5, 12, 7, 3, layout, ids=False)
        case.assignment[..., :] = torch.arange(12) % 2
        case.members[4, 2] = bad
        found = results(case, backend, weights, logits)
        assert found[0][:, 0].isnan().reshape(5, -1).any(1).all()
        assert not alone or found[0][:, 1].isfinite().all()
        assert (found[0][:, 2] == 0).all()
        assert found[2].isnan().any(1).all()
        assert found[3][4].isnan().any()
