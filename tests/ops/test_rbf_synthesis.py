"""Hard negative synthesis on every backend, against the formula in fp64."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, launches
from interpreted import beyond_finite
from itm_kernels.ops._rbf_synthesis import (
    SynthesisOptions,
    fused_rbf_synthesis,
    fused_rbf_synthesis_logits,
)
from kernels import cases, on
from synthesis_problems import (
    LAYOUTS,
    WEIGHTS,
    hold_duplicates_in_their_cluster,
    hold_nan_where_it_belongs,
    hold_on_average,
    hold_to_the_rule,
    in_every_form,
    near_duplicates,
    problem,
    results,
    strided,
)
from synthesis_problems import same as equal_in_fp64

# (N, M, D, K), odd against every vector width; (2, 3, 3, 5): more clusters than members.
NATIVE = [(1, 2, 1, 1), (2, 3, 3, 5), (33, 127, 96, 4), (127, 33, 333, 3), (17, 40, 1000, 2)]
# The emulator's rounds are of a few anchors: (33, 127, 96, 4) takes several, where every anchor has
# its own kernel matrices one for each.
EMULATED = [(1, 2, 1, 1), (2, 3, 3, 5), (33, 127, 96, 4), (127, 33, 33, 3), (5, 40, 1000, 2)]
# Aligned to nothing; (3, 200, ..): a cluster of two blocks of a matrix, and an empty one; (9, 17,
# ..): more than a tile of pairs, ragged.
TRITON = [(1, 2, 1, 1), (2, 3, 3, 5), (3, 200, 33, 2), (9, 17, 333, 8)]


@in_every_form
@cases(
    "size, dtype, with_ids",
    native=[
        (size, t, (True, False)) for size, t in product(NATIVE, (torch.float64, torch.float32))
    ],
    emulated=[
        (size, torch.float32, (True, False) if size[0] < 33 else (True,)) for size in EMULATED
    ],
    triton=[(size, torch.float32, (True,)) for size in TRITON],
)
def test_error_is_at_most_twice_the_formulas(
    backend_name, size, weights, layout, logits, dtype, with_ids
) -> None:
    for ids in with_ids:
        case = problem(*size, layout, ids)
        hold_to_the_rule(case, dtype, weights, logits, backend=backend_name)


@in_every_form
@cases(
    "size, ids",
    emulated=[((1, 2, 1, 1), True), ((2, 3, 3, 5), True), ((9, 31, 333, 3), True)],
    triton=[((2, 3, 3, 5), True), ((5, 33, 96, 3), False)],
)
def test_fp64_is_the_formula(backend_name, size, ids, weights, layout, logits) -> None:
    case = problem(*size, layout, ids)
    equal_in_fp64(*(results(case, name, weights, logits) for name in (backend_name, "reference")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@in_every_form
@on("native", "emulated")
def test_half_precision(backend_name, weights, layout, logits, dtype) -> None:
    hold_to_the_rule(problem(9, 33, 31, 3, layout), dtype, weights, logits)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@on("native", "emulated")
def test_detached_vectors_have_no_gradient_of_members(backend_name, weights, layout) -> None:
    case = problem(9, 33, 31, 3, layout)
    hold_to_the_rule(case, torch.float32, weights, logits=True, detach=True)
    assert results(case, backend_name, weights, True, detach=True)[3].count_nonzero() == 0


@in_every_form
@cases(
    "size, dtype",
    native=[((33, 65, 31, 3), torch.float64), ((33, 65, 31, 3), torch.float32)],
    emulated=[((17, 40, 31, 3), torch.float32)],
)
def test_far_members_of_a_narrow_kernel(backend_name, size, weights, layout, logits, dtype) -> None:
    # e^(-|q - x|^2 / 2 sigma^2) is 0 in fp32 for all of them, their softmax is not.
    hold_to_the_rule(problem(*size, layout), dtype, weights, logits, sigma=0.1)


@in_every_form
@cases(
    "size, seeds",
    native=[((33, 64, 31, 3), 4), ((33, 64, 333, 3), 4)],
    emulated=[((17, 32, 333, 3), 2)],
)
def test_near_duplicates(backend_name, size, seeds, weights, layout, logits) -> None:
    """One of two near-duplicates has the anchor's id: kam's weights are thousands and cancel."""
    drawn = [near_duplicates(*size, layout, seed) for seed in range(seeds)]
    hold_on_average(drawn, torch.float32, weights, logits)


@in_every_form
@cases("exact", native=[False], emulated=[True])
def test_strides_do_not_matter(backend_name, exact, weights, layout, logits) -> None:
    case = problem(9, 20, 7, 3, layout)
    wanted = results(case, backend_name, weights, logits)
    found = results(strided(case), backend_name, weights, logits)
    equal_in_fp64(found, wanted)
    assert not exact or all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    equal = case._replace(grad=torch.ones(()).double().expand(9, 3, 7))
    equal_in_fp64(*(results(equal, name, weights, logits) for name in (backend_name, "reference")))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("logits", [False, True], ids=["vectors", "logits"])
def test_duplicates_without_ridge_are_nan_in_their_cluster_only(
    backend_name, layout, logits
) -> None:
    hold_duplicates_in_their_cluster(backend_name, layout, logits)


@beyond_finite
@in_every_form
def test_nan_rows_show_in_what_depends_on_them(
    kernels, backend_name, weights, layout, logits
) -> None:
    # If the clusters of one anchor are one product, 0 times NaN reaches all of them.
    alone = layout == "shared" or kernels.name == NAMESPACE
    hold_nan_where_it_belongs(backend_name, weights, layout, logits, alone)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_assignments_out_of_range_are_no_cluster(backend_name, weights) -> None:
    case = problem(5, 12, 7, 3, ids=False)
    for layout in (case.assignment, case.assignment.expand(5, 12)):
        wild = torch.where(layout < 0, 2**40, layout)  # 0 in 32 bits
        wild[..., 0] = -(2**40)
        tame = torch.where(wild == layout, layout, -1)
        found, wanted = (
            results(case._replace(assignment=a), backend_name, weights, False) for a in (wild, tame)
        )
        equal_in_fp64(found, wanted)


@in_every_form
@cases(
    "size, fast",
    native=[((3, 4, 5, 3), False), ((3, 9, 5, 3), False)],
    emulated=[((2, 5, 4, 3), True)],
)
def test_gradient_is_the_derivative(backend_name, size, fast, weights, layout, logits) -> None:
    case = problem(*size, layout)
    how = SynthesisOptions(case.num_clusters, 0.7, weights, 1e-2)

    def value(q: Tensor, x: Tensor) -> Tensor:
        inputs = q, x, case.assignment, case.ids["anchor_ids"], case.ids["member_ids"], how
        if logits:
            return fused_rbf_synthesis_logits(*inputs, False, backend_name).cosine
        return fused_rbf_synthesis(*inputs, backend_name).vectors

    inputs = case.anchors.requires_grad_(), case.members.requires_grad_()
    assert torch.autograd.gradcheck(value, inputs, fast_mode=fast)


# -- CUDA ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("M", [64, 65, 90])
@on("emulated")
def test_systems_larger_than_shared_memory(backend_name, layout, M) -> None:
    case = problem(2, M, 5, 1, layout)
    case.assignment[:] = 0
    equal_in_fp64(*(results(case, name, "kam", False) for name in (backend_name, "reference")))


@in_every_form
@on("emulated")
def test_every_schedule_gives_the_same_bits(backend_name, weights, layout, logits) -> None:
    case = problem(9, 40, 30, 3, layout).to(torch.float32)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(results(case, backend_name, weights, logits))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("weights", "count"), [("attention", 2 + 3), ("kam", 4 + 5)])
@pytest.mark.parametrize("logits", [False, True], ids=["vectors", "logits"])
@on("emulated")
def test_launches_are_few(backend_name, logits, weights, count, layout) -> None:
    # 7 blocks are the emulator's largest grid.
    case = problem(7, 7, 8, 1, layout)
    before = launches()
    results(case, backend_name, weights, logits)
    assert launches() - before == count


@in_every_form
@on("emulated")
def test_opcheck(kernels: Any, weights, layout, logits) -> None:
    case = problem(3, 5, 4, 2, layout).to(torch.float32)
    inputs = case.anchors, case.members, case.assignment, *case.ids.values(), 2, 0.5, weights, 1e-4
    grad, none = case.grad.float(), torch.empty(0, 0)  # scores are kept on CPUs only
    if logits:
        torch.library.opcheck(kernels.rbf_synthesis_logits_forward, (*inputs, False, False))
        given = grad[..., 0].contiguous(), none, *inputs, False
        torch.library.opcheck(kernels.rbf_synthesis_logits_backward, given)
    else:
        torch.library.opcheck(kernels.rbf_synthesis_forward, (*inputs, False))
        torch.library.opcheck(kernels.rbf_synthesis_backward, (grad, none, *inputs))
