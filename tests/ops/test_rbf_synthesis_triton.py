"""Hard negative synthesis in Triton: spans, blocks, parts."""

from itertools import product

import pytest
import torch

from kernels import MARKS
from synthesis_problems import (
    LAYOUTS,
    WEIGHTS,
    hold_on_average,
    hold_to_the_rule,
    near_duplicates,
    problem,
    results,
    same,
)

pytestmark = MARKS["triton"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("weights", "logits"), [("kam", True), ("attention", False)])
def test_half_precision(weights, logits, dtype) -> None:
    hold_to_the_rule(problem(5, 33, 31, 3), dtype, weights, logits, backend="triton")


def test_fp32_follows_the_setting() -> None:
    """The interpreter multiplies tf32 in fp32: the test shows that this path is correct, too."""
    torch.set_float32_matmul_precision("high")
    try:
        case = problem(5, 33, 96, 3)
        hold_to_the_rule(case, torch.float32, "attention", False, backend="triton")
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("logits", [False, True])
def test_sums_of_a_memory_have_more_bits_than_tf32(logits, monkeypatch) -> None:
    """The sums cancel: operands have two parts, whose products err by less than 2^-14."""
    from itm_kernels.triton import _member_sums

    case, terms = problem(5, 33, 96, 3).to(torch.float32), []
    count = _member_sums.kind_and_parts
    monkeypatch.setattr(
        _member_sums, "kind_and_parts", lambda *given: terms.append(count(*given)) or terms[-1]
    )
    exact = results(case.to(torch.float64), "reference", "kam", logits)
    torch.set_float32_matmul_precision("high")
    try:
        found = results(case, "triton", "kam", logits)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(terms) == {("parts", 2)}
    for value, wanted in zip(found, exact, strict=True):
        size = wanted.double().abs().max().clamp_min(1)
        assert (value.double() - wanted.double()).abs().max() < 2.0**-14 * size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_near_duplicates(layout) -> None:
    """One of two near-duplicates has the anchor's id: kam's weights are thousands and cancel."""
    cases = [near_duplicates(5, 32, 33, 3, layout, seed) for seed in range(4)]
    for logits in (False, True):
        hold_on_average(cases, torch.float32, "kam", logits, backend="triton")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_anchors_of_constant_vectors(dtype, layout) -> None:
    for weights, scale in (("kam", 1e-6), ("attention", 1e3)):
        case = problem(5, 33, 40, 3, layout)
        case.anchors[1] = 0  # which has no direction
        case = case._replace(grad=case.grad * scale)
        hold_to_the_rule(case, dtype, weights, True, True, backend="triton")


def test_far_members_of_a_narrow_kernel() -> None:
    # e^(-|q - x|^2 / 2 sigma^2) is 0 in fp32 for all of them, their softmax is not.
    case = problem(9, 65, 31, 3)
    hold_to_the_rule(case, torch.float32, "attention", False, backend="triton", sigma=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_of_anchors_are_one(layout, monkeypatch) -> None:
    from itm_kernels.triton import _synthesis_blocks

    case = problem(7, 12, 5, 3, layout)
    forms = list(product(WEIGHTS, (False, True), (False, True)))  # weights, logits, detach
    whole = [results(case, "triton", *form) for form in forms]
    monkeypatch.setattr(_synthesis_blocks, "rows_per_block", lambda *sizes: 3)
    for form, wanted in zip(forms, whole, strict=True):
        same(results(case, "triton", *form), wanted)


def test_strides_do_not_matter() -> None:
    for layout, logits in product(LAYOUTS, (False, True)):
        case = problem(5, 9, 7, 3, layout)
        strided = case._replace(
            anchors=case.anchors.T.contiguous().T,
            members=torch.empty(9, 14, dtype=torch.float64)[:, ::2].copy_(case.members),
            assignment=torch.stack([case.assignment] * 2, -1)[..., 1],
            ids={name: torch.stack([ids] * 2, 1)[:, 0] for name, ids in case.ids.items()},
            grad=case.grad.transpose(0, 2).contiguous().transpose(0, 2),
        )
        wanted, found = (results(c, "triton", "attention", logits) for c in (case, strided))
        same(found, wanted)


@pytest.mark.parametrize("panels", [1, 3])
def test_clusters_are_solved_alone(panels: int, monkeypatch) -> None:
    """Clusters of a row, a block, one row more, two and one more; an empty one; rows in none."""
    from itm_kernels.triton import _cholesky, _clusters, _kam_solve

    monkeypatch.setattr(_cholesky, "_PANEL", 6 // panels)
    sizes = torch.tensor([1, 64, 0, 65, 130, 10])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(270, 33, generator=generator, dtype=torch.float64) / 6
    own = torch.arange(6).repeat_interleave(sizes)
    assignment = torch.stack([own[torch.randperm(270, generator=generator)] for _ in range(2)])
    order, starts, _ = _clusters.sorted_by_cluster(assignment, 5)
    right = torch.randn(2, 270, 3, generator=generator, dtype=torch.float64)
    bad = order[1, 66]  # in a cluster of the second problem only
    x[bad] = x[order[1, 67]]
    problems = _kam_solve.factorize(x, starts, order, 0.5, 0.0)
    found = torch.zeros_like(right)
    problems.solve(right, found)
    alone = _kam_solve.AssociativeMemory(x[order[0]], starts[:1], 0.5, 0.0, False)
    sorted_right = right[0, order[0]]
    torch.testing.assert_close(alone.solve(sorted_right, torch.float64), found[0, order[0]])
    for b, k in product(range(2), range(5)):
        rows = order[b, starts[b, k] : starts[b, k + 1]]
        assert rows.equal((assignment[b] == k).nonzero()[:, 0])
        if bad in rows and order[1, 67] in rows:
            assert found[b, rows].isnan().all()
            continue
        distance = torch.cdist(x[rows], x[rows], compute_mode="donot_use_mm_for_euclid_dist")
        kernel = torch.exp(-distance.square() / (2 * 0.5**2))
        torch.testing.assert_close(kernel @ found[b, rows], right[b, rows])
    assert (found[assignment == 5] == 0).all()


def test_spans_cover_every_cluster_once() -> None:
    from itm_kernels.triton import _clusters

    generator = torch.Generator().manual_seed(0)
    for columns, K, at_once in ((1, 1, 64), (5, 9, 2), (64, 3, 4), (65, 2, 64), (7, 7, 64)):
        assignment = torch.randint(-1, K, (20, columns), generator=generator)
        order, starts, _ = _clusters.sorted_by_cluster(assignment, K)
        spans = _clusters.spans_of(starts, columns, at_once)
        for b in range(20):
            seen = [-1] * columns
            for cluster, begin, first, end in zip(*(t[b].tolist() for t in spans), strict=True):
                assert begin == end == 0 or (begin, end) == tuple(starts[b, cluster:][:2].tolist())
                for column in range(first, min(first + at_once, end)):
                    assert seen[int(order[b, column])] == -1
                    seen[int(order[b, column])] = cluster
            assert seen == assignment[b].tolist()
