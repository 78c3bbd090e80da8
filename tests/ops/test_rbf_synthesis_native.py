"""Hard negative synthesis on CPUs: blocks, kept scores, threads, instruction sets."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from compiled import assert_agrees_with_lower_sets, every_instruction_set
from itm_kernels import _policies
from itm_kernels.ops._rbf_synthesis import (
    SynthesisOptions,
    fused_rbf_synthesis,
    fused_rbf_synthesis_logits,
)
from kernels import MARKS
from synthesis_problems import (
    furthest,
    hold_to_the_rule,
    in_every_form,
    problem,
    results,
    same,
)

pytestmark = MARKS["native"]


@pytest.mark.parametrize(("M", "D"), [(40, 33), (64, 31), (64, 333)])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 0.0])
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "no ids"])
def test_vectors_of_near_duplicates_do_not_cancel(M, D, distance, ids) -> None:
    """The formula cancels, by up to 1e-4: its weights are thousands. A^-1 X is as large as X."""
    case = problem(33, M, D, 3, ids=ids)
    case.members[M // 2 :] = normalize(case.members[: M // 2] + distance * case.members[M // 2 :])
    case.assignment[M // 2 :] = case.assignment[: M // 2]
    hold_to_the_rule(case, torch.float32, "kam", logits=False)
    rounded = case.to(torch.float32)
    exact = results(rounded.to(torch.float64), "reference", "kam", logits=False)
    found = results(rounded, "native", "kam", logits=False)
    for wanted, ours in ((exact[0], found[0]), (exact[2], found[2])):  # vectors and anchors
        size = max(1.0, wanted.abs().max().item())
        assert furthest(ours, wanted) <= 64 * torch.finfo(torch.float32).eps * size


@in_every_form
def test_many_blocks_of_anchors_are_one(weights, layout, logits) -> None:
    # More anchors than the 512 of a block, ragged.
    case = problem(600, 20, 5, 4, layout)
    wanted, found = (results(case, backend, weights, logits) for backend in ("reference", "native"))
    same(found, wanted)


def test_many_members_make_blocks_small() -> None:
    # 1 M scores are 52 anchors of 20,000 members.
    case = problem(70, 20_000, 2, 3)
    wanted, found = (
        results(case, backend, "attention", False) for backend in ("reference", "native")
    )
    same(found, wanted)


# (600, 20, 20, 4): more than one block; (9, 40, 8, 3): clusters one by one, some members in none.
@in_every_form
@pytest.mark.parametrize("size", [(33, 127, 96, 4), (600, 20, 20, 4), (9, 40, 8, 3)], ids=str)
def test_kept_scores_are_those_that_are_computed_again(
    size, weights, layout, logits, monkeypatch
) -> None:
    case = problem(*size, layout)
    kept = results(case, "native", weights, logits)
    monkeypatch.setattr(_policies, "KEPT_BYTES", 0)
    same(kept, results(case, "native", weights, logits))


@in_every_form
def test_a_backward_pass_leaves_kept_scores_as_they_were(weights, layout, logits) -> None:
    case = problem(33, 20, 9, 3, layout)
    q, x = case.anchors.requires_grad_(), case.members.requires_grad_()
    inputs = q, x, case.assignment, *case.ids.values(), SynthesisOptions(3, 0.5, weights, 1e-4)
    found = (
        fused_rbf_synthesis_logits(*inputs, False, "native")
        if logits
        else fused_rbf_synthesis(*inputs, "native")
    )
    total = found[0].square().sum()
    first, second = (torch.autograd.grad(total, (q, x), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("logits", [False, True], ids=["vectors", "logits"])
def test_kept_scores_are_read(logits) -> None:
    case = problem(5, 7, 9, 2)
    given = case.anchors, case.members, case.assignment, None, None, 2, 0.5, "kam", 1e-4
    operators, name = torch.ops.itm_native, "rbf_synthesis" + "_logits" * logits
    given = (*given, False) if logits else given
    output, _, scores = getattr(operators, f"{name}_forward")(*given, True)
    assert scores.shape == (5, 7)
    backward = getattr(operators, f"{name}_backward")
    assert backward(output, scores, *given)[0].isfinite().all()
    assert backward(output, scores.fill_(torch.nan), *given)[0].isnan().all()


def test_scores_are_kept_up_to_a_size_and_only_for_a_gradient(monkeypatch) -> None:
    kept = []

    def record(namespace: str, x: Tensor, y: Tensor) -> bool:
        kept.append(keeps_scores(namespace, x, y))
        return kept[-1]

    keeps_scores = _policies.keeps_scores
    monkeypatch.setattr(_policies, "keeps_scores", record)
    case = problem(5, 7, 9, 2).to(torch.float32)
    for size in (4 * 5 * 7, 4 * 5 * 7 - 1):
        monkeypatch.setattr(_policies, "KEPT_BYTES", size)
        results(case, "native", "kam", logits=False)
    assert kept == [True, False]
    fused_rbf_synthesis(*case[:3], None, None, SynthesisOptions(2, 0.5, "kam", 1e-4), "native")
    assert len(kept) == 2  # not called
    for D in (1, 2):  # inputs of 10 and 20 numbers, 25 scores: cosines do without
        results(problem(5, 5, D, 2), "native", "kam", logits=True)
    assert len(kept) == 2
    results(problem(5, 5, 3, 2), "native", "kam", logits=True)
    assert len(kept) == 3


@in_every_form
def test_concurrent_calls_share_no_state(weights, layout, logits) -> None:
    cases = [problem(20, 30, 17, 3, layout, seed=seed).to(torch.float32) for seed in range(4)]
    alone = [results(case, "native", weights, logits) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = pool.map(lambda case: results(case, "native", weights, logits), cases)
            for ours, theirs in zip(together, alone, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_threads_below_autograd() -> None:
    """Systems of single anchors are solved on other threads, where autograd must stay off."""
    case = problem(40, 12, 9, 3, "per_anchor")
    wanted = results(case, "native", "kam", False)
    torch.set_num_threads(2)
    try:
        found = results(case, "native", "kam", False)
    finally:
        torch.set_num_threads(1)
    same(found, wanted)


REPORT = """
import torch
from itertools import product
from synthesis_problems import LAYOUTS, WEIGHTS, problem, results
for layout, weights, logits in product(LAYOUTS, WEIGHTS, (False, True)):
    case = problem(40, 130, 37, 3, layout).to(torch.float32)
    print(*[t.double().square().sum().item() for t in results(case, "native", weights, logits)])
"""


@pytest.mark.any_set
@every_instruction_set
def test_instruction_sets_agree(capability: str) -> None:
    assert_agrees_with_lower_sets(capability, REPORT)
