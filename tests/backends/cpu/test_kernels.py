"""Properties of compiled CPU kernels only: tiles, threads, instruction sets."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from compiled import (
    HIGHEST,
    assert_agrees_with_lower_sets,
    every_instruction_set,
    needs_extension,
    on,
    run_with,
)
from itm_kernels import _policies, backends, functional, ops
from itm_kernels.ops import _log_sum_exp, _pair_entropy, _sigmoid, _sum_of_hinges
from loss_cases import BY_NAME, CASES, Case, batch, gradients


def captions(N: int, D: int, seed: int = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return five texts per image in shuffled order, and their ids."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(size, D, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (N, 5 * N)
    ]
    text_ids = torch.randperm(5 * N, generator=generator) // 5
    return rows, {"image_ids": torch.arange(N), "text_ids": text_ids}


# Losses of the operators that keep scores while they are small, one of each.
KEEPING = ("sum_of_hinges", "info_nce", "sigmoid")


def in_every_way(cases: Sequence[Case]) -> list[Any]:
    """Return cases with the scores to keep: for every loss all, for one loss per operator none.

    An operator decides which scores it keeps, independently of the loss.
    """
    ways = [(case, "kept") for case in cases]
    ways += [(case, "recomputed") for case in cases if case.name in KEEPING]
    return [pytest.param(*way, id=f"{way[1]}-{way[0].name}") for way in ways]


@pytest.fixture
def scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep all scores for the backward pass, or none."""
    if request.param == "recomputed":
        monkeypatch.setattr(_policies, "KEPT_BYTES", 0)


def results(case: Case, backend: str, rows: Sequence[Tensor], **ids: Tensor) -> list[Tensor]:
    """Return a loss and its gradients."""
    loss = case.loss(*rows, backend, **ids)
    return [loss.detach(), *gradients(loss, *rows)]


def many(name: str) -> int:
    """Return a ragged number of rows: more than one tile of 512 (per thread) x 512 both ways.

    Synthesis solves a system of all rows of a cluster, whose cost grows with their cube.
    """
    return 1100 if name.startswith("info_cmr") else 2100


@cache
def wanted(name: str, five: bool) -> list[Tensor]:
    """Return the result of the formula, once for all ways of the kernels."""
    rows, ids = captions(430, 3) if five else (batch(many(name), 3), {})
    return results(BY_NAME[name], "reference", rows, **ids)


@pytest.mark.any_set
@pytest.mark.parametrize(("case", "scores"), in_every_way(CASES), indirect=["scores"])
def test_many_tiles_are_one_matrix(case: Case, scores: None) -> None:
    found = results(case, "auto", batch(many(case.name), 3))
    torch.testing.assert_close(found, wanted(case.name, five=False))


@pytest.mark.any_set
@pytest.mark.parametrize(
    ("case", "scores"),
    in_every_way([case for case in CASES if case.takes_ids]),
    indirect=["scores"],
)
def test_five_captions_over_many_tiles(case: Case, scores: None) -> None:
    rows, ids = captions(430, 3)
    torch.testing.assert_close(results(case, "auto", rows, **ids), wanted(case.name, five=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "D"), [(1, 3), (2, 1), (33, 333), (127, 96)])
@pytest.mark.parametrize("name", KEEPING)
def test_kept_scores_are_those_that_are_computed_again(
    name: str, N: int, D: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text = batch(N, D, dtype)
    kept = gradients(BY_NAME[name].loss(image, text, "native"), image, text)
    monkeypatch.setattr(_policies, "KEPT_BYTES", 0)
    computed = gradients(BY_NAME[name].loss(image, text, "native"), image, text)
    for ours, theirs in zip(kept, computed, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", KEEPING)
def test_a_backward_pass_leaves_kept_scores_as_they_were(name: str) -> None:
    image, text = batch(40, 9)
    loss = BY_NAME[name].loss(image, text, "native")
    first, second = (torch.autograd.grad(loss, (image, text), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", KEEPING)
def test_scores_are_kept_up_to_a_size_and_only_for_a_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def record(namespace: str, x: Tensor, y: Tensor) -> bool:
        kept.append(keeps_scores(namespace, x, y))
        return kept[-1]

    keeps_scores = _policies.keeps_scores
    for module in (_log_sum_exp, _pair_entropy, _sigmoid, _sum_of_hinges):
        monkeypatch.setattr(module, "keeps_scores", record)
    loss = getattr(functional, f"{name}_loss")
    image, text = batch(40, 9, torch.float32)
    for size in (4 * 40 * 40, 4 * 40 * 40 - 1):
        monkeypatch.setattr(_policies, "KEPT_BYTES", size)
        loss(image, text, backend="native")
    assert kept == [True, False]
    loss(image.detach(), text.detach(), backend="native")
    assert len(kept) == 2  # not asked


def test_ties_across_tiles_go_to_the_lowest_index() -> None:
    image, text = torch.ones(2100, 2), torch.ones(2100, 2)
    found = ops.hardest_negatives(image, text, backend="auto")
    expected = [1] + [0] * 2099
    assert found.text_index.tolist() == expected
    assert found.image_index.tolist() == expected


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Few columns are fewer panels than threads: the sides are then summed one by one.
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("N", "M", "D"), [(1, 1, 1), (7, 600, 33), (300, 3, 5), (65, 258, 200)])
def test_l1_gradient_is_that_of_cdist(N: int, M: int, D: int, dtype: torch.dtype) -> None:
    # Small integers: many coordinates are equal, and sums of weights are exact.
    generator = torch.Generator().manual_seed(N + M + D)
    x, y, upstream = (
        torch.randint(-3, 4, size, generator=generator).to(dtype)
        for size in ((N, D), (M, D), (N, M))
    )
    x[N // 2, D // 2], x[0, 0], y[M // 2, 0] = torch.nan, torch.inf, torch.inf
    x.requires_grad_(), y.requires_grad_()
    found = torch.autograd.grad(ops.similarity(x, y, "l1", backend="native"), (x, y), upstream)
    wanted = torch.autograd.grad(torch.cdist(x, y, p=1), (x, y), upstream)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", ["cosine", "l1"])
def test_blocks_of_many_threads_hold_every_pair_once(metric: str) -> None:
    # 17 x 128 rows would be more than a tile has columns.
    x = batch(2100, 3)[0].detach()
    values = []
    before = torch.get_num_threads()
    try:
        for count in (1, 17):
            torch.set_num_threads(count)
            values.append(
                functional.intra_modal_constraint(x, metric=metric, mode="paper", backend="native")
            )
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*values)


# InfoCMR draws from torch's generator, which threads share.
@pytest.mark.parametrize(
    "case", [case for case in CASES if "info_cmr" not in case.name], ids=lambda case: case.name
)
def test_concurrent_calls_share_no_state(case: Case) -> None:
    inputs = [tuple(t.detach() for t in batch(70, 9, torch.float32, seed)) for seed in range(4)]
    alone = [case.loss(*rows, "auto") for rows in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(lambda rows: case.loss(*rows, "auto"), inputs)
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


REPORT = """
import torch
from loss_cases import BY_NAME, batch, gradients
for name in {names}:
    image, text = batch(300, 37, torch.float32)
    loss = BY_NAME[name].loss(image, text, "auto")
    sizes = [grad.double().square().sum().item() for grad in gradients(loss, image, text)]
    print(loss.item(), *sizes)
"""


@pytest.mark.any_set
@every_instruction_set
def test_instruction_sets_agree(capability: str) -> None:
    """Each set has loops of its own; all must agree."""
    script = REPORT.format(names=[case.name for case in CASES])
    assert_agrees_with_lower_sets(capability, script)


EVERYTHING = """
import torch
from random_tensors import ids, rows
torch.set_num_threads({threads})
x, y, init = (rows(*shape, seed=k, dtype=torch.float32)
              for k, shape in enumerate([(300, 37), (2100, 37), (1, 9, 37)]))
seeded = torch.Generator().manual_seed(0)
member = torch.rand(40, 300, generator=seeded) > 0.1
labels = ids(300, 250, 1), ids(2100, 250, 2)
from itm_kernels import ops
kernels = torch.ops.itm_native
results = [*ops.ranks(x, y, *labels, backend="native"), kernels.kmeans(y, None, init, 5)[0]]
start = kernels.kmeans_plus_plus(x, member, torch.rand(9, 300, generator=seeded) + 0.1)
results += [start[..., 0], kernels.kmeans(x, member, start, 5)[0]]
seed = torch.tensor([0x123456789ABCDEF0, 2**63 - 5])
for strategy in ("multinomial", "uniform", "hardest"):
    results += kernels.sample_negatives(x, y, *labels, strategy, 2.0, seed)
for result in results:
    print(*result.flatten().tolist())
"""


@pytest.mark.any_set
@pytest.mark.parametrize(
    ("capability", "threads"), [on("avx2", 1), on("avx512", 1), on(HIGHEST, 2)]
)
def test_instruction_sets_and_threads_agree(capability: str, threads: int) -> None:
    """Ranks, k-means and sampling are the same to the bit."""
    report, lowest = (
        run_with(*run)
        for run in (
            (capability, EVERYTHING.format(threads=threads)),
            ("default", EVERYTHING.format(threads=1)),
        )
    )
    assert len(report) == 13
    assert report == lowest


@needs_extension
def test_native_kernels_take_unit_rows() -> None:
    image, text = (rows.float() for rows in batch())
    given = image, text, torch.tensor(3.0), torch.tensor(-1.0), None, None, None
    with pytest.raises(RuntimeError, match="native kernels take unit rows; pass cosine=False"):
        torch.ops.itm_native.sigmoid_forward(*given, False, True)


def test_the_build_is_what_auto_uses() -> None:
    for operator in backends.NATIVE_KERNELS["cpu"]:
        assert backends.why_not(operator, "cpu", "native") is None
    for name in ("max_of_hinges", "sigmoid"):
        if backends.NATIVE_KERNELS["cpu"]:
            loss = BY_NAME[name].loss(*batch(), "native")
            torch.testing.assert_close(loss, BY_NAME[name].loss(*batch()))
