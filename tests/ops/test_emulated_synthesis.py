"""Hard negative synthesis on CUDA, from binding to kernel, on the emulator."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from emulated import NAMESPACE, SCHEDULES, as_native, launches
from itm_kernels.ops._rbf_synthesis import (
    SynthesisOptions,
    fused_rbf_synthesis,
    fused_rbf_synthesis_logits,
)
from kernels import MARKS
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

pytestmark = MARKS["emulated"]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with as_native():
        yield


# (N, M, D, K); (2, 3, 3, 5): more clusters than members. The emulator's rounds are of some anchors:
# (33, 127, 96, 4) takes several, where every anchor has its own kernel matrices one for each.
SIZES = [(1, 2, 1, 1), (2, 3, 3, 5), (33, 127, 96, 4), (127, 33, 33, 3), (5, 40, 1000, 2)]


@in_every_form
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_error_is_at_most_twice_the_formulas(size, weights, layout, logits) -> None:
    for ids in (True, False) if size[0] < 33 else (True,):
        hold_to_the_rule(problem(*size, layout, ids), torch.float32, weights, logits)


@in_every_form
@pytest.mark.parametrize("size", [(1, 2, 1, 1), (2, 3, 3, 5), (9, 31, 333, 3)], ids=str)
def test_fp64(size, weights, layout, logits) -> None:
    case = problem(*size, layout)
    equal_in_fp64(*(results(case, name, weights, logits) for name in ("native", "reference")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@in_every_form
def test_half_precision(weights, layout, logits, dtype) -> None:
    hold_to_the_rule(problem(9, 33, 31, 3, layout), dtype, weights, logits)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_detached_vectors_send_nothing_to_members(weights, layout) -> None:
    case = problem(9, 33, 31, 3, layout)
    hold_to_the_rule(case, torch.float32, weights, logits=True, detach=True)
    assert results(case, "native", weights, True, detach=True)[3].count_nonzero() == 0


@in_every_form
def test_far_members_of_a_narrow_kernel(weights, layout, logits) -> None:
    # e^(-|q - x|^2 / 2 sigma^2) is 0 in fp32 for all of them, their softmax is not.
    hold_to_the_rule(problem(17, 40, 31, 3, layout), torch.float32, weights, logits, sigma=0.1)


@in_every_form
def test_near_duplicates(weights, layout, logits) -> None:
    """One of two near-duplicates shares the anchor's id: kam's weights are thousands and cancel."""
    cases = [near_duplicates(17, 32, 333, 3, layout, seed) for seed in range(2)]
    hold_on_average(cases, torch.float32, weights, logits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("M", [64, 65, 90])
def test_systems_beyond_shared_memory(layout, M) -> None:
    case = problem(2, M, 5, 1, layout)
    case.assignment[:] = 0
    equal_in_fp64(*(results(case, name, "kam", False) for name in ("native", "reference")))


@in_every_form
def test_strides_do_not_matter(weights, layout, logits) -> None:
    case = problem(9, 20, 7, 3, layout)
    wanted = results(case, "native", weights, logits)
    found = results(strided(case), "native", weights, logits)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    equal = case._replace(grad=torch.ones(()).double().expand(9, 3, 7))
    equal_in_fp64(*(results(equal, name, weights, logits) for name in ("native", "reference")))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("logits", [False, True], ids=["vectors", "logits"])
def test_duplicates_without_ridge_are_nan_in_their_cluster_alone(layout, logits) -> None:
    hold_duplicates_in_their_cluster("native", layout, logits)


@in_every_form
def test_nan_rows_show_in_what_depends_on_them(weights, layout, logits) -> None:
    hold_nan_where_it_belongs("native", weights, layout, logits)


def test_assignments_out_of_range_are_no_cluster() -> None:
    case = problem(5, 12, 7, 3, ids=False)
    for layout in (case.assignment, case.assignment.expand(5, 12)):
        wild = torch.where(layout < 0, 2**40, layout)
        wild[..., 0] = -(2**40)
        tame = torch.where(wild == layout, layout, -1)
        for weights in WEIGHTS:
            found, wanted = (
                results(case._replace(assignment=a), "native", weights, False) for a in (wild, tame)
            )
            equal_in_fp64(found, wanted)


@in_every_form
def test_every_schedule_gives_the_same_bits(weights, layout, logits) -> None:
    case = problem(9, 40, 30, 3, layout).to(torch.float32)
    found = []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(results(case, "native", weights, logits))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("weights", "count"), [("attention", 2 + 3), ("kam", 4 + 5)])
@pytest.mark.parametrize("logits", [False, True], ids=["vectors", "logits"])
def test_launches_are_few(logits, weights, count, layout) -> None:
    # 7 blocks are the emulator's largest grid.
    case = problem(7, 7, 8, 1, layout)
    before = launches()
    results(case, "native", weights, logits)
    assert launches() - before == count


@in_every_form
def test_gradient_is_the_derivative(weights, layout, logits) -> None:
    case = problem(2, 5, 4, 3, layout)

    def value(q: Tensor, x: Tensor) -> Tensor:
        ids = case.ids["anchor_ids"], case.ids["member_ids"]
        inputs = (
            q,
            x,
            case.assignment,
            *ids,
            SynthesisOptions(case.num_clusters, 0.7, weights, 1e-2),
        )
        if logits:
            return fused_rbf_synthesis_logits(*inputs, False, "native").cosine
        return fused_rbf_synthesis(*inputs, "native").vectors

    inputs = case.anchors.requires_grad_(), case.members.requires_grad_()
    assert torch.autograd.gradcheck(value, inputs, fast_mode=True)


@in_every_form
def test_opcheck(weights, layout, logits) -> None:
    case = problem(3, 5, 4, 2, layout).to(torch.float32)
    operators = getattr(torch.ops, NAMESPACE)
    inputs = case.anchors, case.members, case.assignment, *case.ids.values(), 2, 0.5, weights, 1e-4
    grad, none = case.grad.float(), torch.empty(0, 0)  # scores are kept on CPUs alone
    if logits:
        torch.library.opcheck(operators.rbf_synthesis_logits_forward, (*inputs, False, False))
        given = grad[..., 0].contiguous(), none, *inputs, False
        torch.library.opcheck(operators.rbf_synthesis_logits_backward, given)
    else:
        torch.library.opcheck(operators.rbf_synthesis_forward, (*inputs, False))
        torch.library.opcheck(operators.rbf_synthesis_backward, (grad, none, *inputs))
