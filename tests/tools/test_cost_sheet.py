"""The cost sheet's arithmetic, on launches and formulas that are counted by hand."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cost_sheet import compare, goals, kernels, rates, rivals, sheet, trace
from benchmarks.cost_sheet.__main__ import complaints
from benchmarks.cost_sheet.counts import Count, Launch, Operand
from benchmarks.cost_sheet.predict import predict, terms
from benchmarks.rivals import eager

N, D = 4096, 1024
H200 = rates.H200


def rows(N: int, D: int, dtype: torch.dtype, parts: int = 1, storage: int = 0) -> Operand:
    return Operand((parts, N, D), dtype, (N * D, D, 1), storage)


def hardest(N: int = N, tile: tuple[int, int] = (128, 128), **changes: Any) -> Count:
    dtype, parts = changes.pop("dtype", torch.bfloat16), changes.get("PARTS", 1)
    arguments = {
        **{"x": rows(N, D, dtype, parts, 1), "y": rows(N, D, dtype, parts, 2), "N": N, "M": N},
        **{"ROWS": tile[0], "COLUMNS": tile[1], "PARTS": 1, "PRECISION": "ieee"},
        **{"HAS_IDS": False, "BOUNDED": False, "OF_ROWS": True, "OF_COLUMNS": True},
    }
    programs = -(-N // tile[0]) * -(-N // tile[1])
    return kernels.count_of(Launch("_hardest._hardest_kernel", (programs,), arguments | changes))


def test_a_tile_kernel_multiplies_every_pair_once() -> None:
    count = hardest()
    assert count.flop == 2 * N * N * D
    assert count.l2 == 32 * 32 * (128 + 128) * D * 2  # every program its rows and columns
    assert count.hbm == 2 * N * D * 2  # both sides fit the L2
    assert count.kind == "half"
    assert count.ceiling == pytest.approx(0.8 * 1024 / (8 * 132))  # eight waves of tiles


def test_ragged_tiles_are_multiplied_whole() -> None:
    assert hardest(N=129).flop == 2 * 256 * 256 * D


@pytest.mark.parametrize(("parts", "products"), [(1, 1), (2, 3), (3, 6)])
def test_parts_are_multiplied_as_fp32_sees_them(parts: int, products: int) -> None:
    count = hardest(PARTS=parts)
    assert count.flop == products * hardest().flop
    assert count.l2 == products * hardest().l2
    assert count.hbm == parts * hardest().hbm


def test_fp32_rows_take_the_units_of_their_precision() -> None:
    assert hardest(dtype=torch.float32).kind == "fp32"
    assert hardest(dtype=torch.float32, PRECISION="tf32").kind == "tf32"


def test_columns_beyond_the_l2_are_read_once_per_group_of_row_tiles() -> None:
    side = 32768 * D * 2
    assert hardest(N=32768).hbm == side + 32768 // 128 // 8 * side


def test_broadcast_and_repeated_operands_count_once() -> None:
    one = Operand((4, 8), torch.float32, (0, 1), 7)
    assert one.bytes == 8 * 4
    launch = Launch("unit_rows._forward_kernel", (1,), {"x": one, "again": one})
    assert kernels.count_of(launch).l2 == 8 * 4


def test_a_kernel_without_a_model_is_named() -> None:
    with pytest.raises(LookupError, match="_new._kernel has no cost model"):
        kernels.count_of(Launch("_new._kernel", (1,), {}))


def test_time_is_the_largest_of_what_overlaps_and_a_gap() -> None:
    count = Count("copy", hbm=4.2e9, l2=7.5e8)
    assert terms(count, H200) == pytest.approx({"launches": 3e-6, "HBM": 1e-3})
    count = Count("product", flop=807e9, depth=10**9, l2=7.5e8)
    assert terms(count, H200) == pytest.approx({"launches": 3e-6, "16-bit products": 1e-3})


def test_an_epilogue_is_added_where_nothing_hides_it() -> None:
    count = Count("tile", flop=807e9, depth=10**9, exponentials=H200.exponentials / 1e3)
    assert terms(count, H200)["exponentials"] == pytest.approx(1e-3)
    half = terms(count._replace(exposed=0.5), H200)
    assert half["exponentials"] == pytest.approx(5e-4)
    hidden = terms(count._replace(exposed=0.0), H200)
    assert sum(hidden.values()) == pytest.approx(1e-3 + 3e-6)


def test_rates_are_those_stated_for_long_and_for_short_sums() -> None:
    assert rates.rate_of(H200, "half", 1024) == pytest.approx(764e12, rel=0.01)
    assert rates.rate_of(H200, "half", 10**6) == pytest.approx(807e12, rel=0.01)


@pytest.mark.parametrize(
    ("tile", "share"),
    [((64, 64), 0.5), ((128, 64), 0.57), ((128, 128), 0.8), ((128, 256), 1.0), ((32, 32), 0.25)],
)
def test_a_tile_has_its_ceiling(tile: tuple[int, int], share: float) -> None:
    assert rates.ceiling_of("half", *tile) == share


@pytest.mark.parametrize(
    ("tile", "warps", "exponentials", "programs"),
    [((128, 256), 8, 0, 1), ((128, 128), 8, 0, 2), ((128, 128), 8, 2, 1), ((64, 64), 4, 2, 4)],
)
def test_an_epilogue_is_hidden_by_programs_beside_it(
    tile: tuple[int, int], warps: int, exponentials: int, programs: int
) -> None:
    launch = Launch("", (), {"ROWS": tile[0], "COLUMNS": tile[1], "num_warps": warps})
    assert kernels.beside(launch, exponentials) == programs


def test_the_largest_term_is_named_with_its_launch() -> None:
    counts = [Count("one", hbm=4.2e9), Count("two", hbm=8.4e9), Count("one", hbm=8.4e9)]
    found = predict(counts, H200)
    assert found.seconds == pytest.approx(5e-3 + 9e-6)
    assert found.named() == "HBM of one 60 %"


# -- traces ----------------------------------------------------------------------------------------


def sides(N: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    x, y = (torch.empty(N, D, dtype=dtype, device="meta", requires_grad=True) for _ in range(2))
    return x, y


def multiplied(counts: list[Count]) -> float:
    return sum(count.flop for count in counts)


def test_eager_multiplies_once_forward_and_twice_backward() -> None:
    for formula in (eager.max_of_hinges, eager.info_nce, eager.sigmoid):
        found = trace.traced(formula, sides(N))
        assert multiplied(found.forward) == 2 * N * N * D
        assert multiplied(found.backward) == 4 * N * N * D
        assert found.gradients == 2 * N * D * 2


def test_eager_keeps_matrices_that_count_as_memory() -> None:
    found = trace.traced(eager.info_nce, sides(N))
    assert found.peak > 4 * N * N * 2


def test_views_launch_nothing_and_a_product_moves_its_operands() -> None:
    x, y = sides(N)
    with trace.precision_of("bf16"):
        found = trace.traced(lambda x, y: x.detach() @ y.detach().T[:, :64], (x, y))
    (count,) = found.counts
    assert count.name == "mm" and count.l2 == 2 * (N * D + 64 * D + N * 64)
    assert found.backward == []


def test_a_product_into_a_tensor_that_is_there_counts_the_same() -> None:
    a, b = torch.empty(64, 32, device="meta"), torch.empty(32, 48, device="meta")
    out = torch.empty(64, 48, device="meta")
    plain = trace.traced(lambda a, b: a @ b, (a, b))
    into = trace.traced(lambda a, b: torch.mm(a, b, out=out), (a, b))
    more = trace.traced(lambda a, b: out.addmm_(a, b), (a, b))
    assert multiplied(plain.counts) == multiplied(into.counts) == multiplied(more.counts)
    assert multiplied(plain.counts) == 2 * 64 * 32 * 48


def test_distances_of_eager_are_a_product_with_and_without_gradient() -> None:
    for sides_of in (sides(N, torch.float32), [side.detach() for side in sides(N, torch.float32)]):
        found = trace.traced(torch.cdist, sides_of)
        assert multiplied(found.forward) == 2 * N * N * (D + 2)
        assert sum(count.launches for count in found.forward) >= 10


def test_memory_is_what_lives_at_once() -> None:
    def function(x: Tensor) -> Tensor:
        first = torch.empty(1000, device="meta")
        del first
        second, third = x.detach() + 1, x.detach() + 2
        return second[:0] + third[:0]

    found = trace.traced(function, [torch.empty(500, device="meta")])
    assert found.peak == 2 * 500 * 4


def test_fp32_products_follow_the_precision_that_is_set() -> None:
    kinds = {}
    for name in ("fp32", "tf32", "bf16"):
        with trace.precision_of(name) as dtype:
            found = trace.traced(lambda x, y: (x @ y.T).sum(), sides(64, dtype))
        kinds[name] = {count.kind for count in found.counts if count.flop}
    assert kinds == {"fp32": {"fp32"}, "tf32": {"tf32"}, "bf16": {"half"}}


# -- the check -------------------------------------------------------------------------------------

KEY = "max of hinges/N=4096,bf16"


def traced(change: Callable[[trace.Trace], trace.Trace] = lambda found: found) -> sheet.Row:
    counts = [hardest(), *(Count("sum", hbm=1e9) for _ in range(8))]
    found = change(trace.Trace(counts, [Count("fill", triton=True)], 10**6, 10**5))
    slow = trace.Trace([*counts, Count("copy", hbm=1e11)] * 2, [], 10**8, 10**5)
    return {"ours": sheet.summary(found), "eager": sheet.summary(slow)}


def committed() -> dict[str, Any]:
    return {"exceeds": [], "rows": {KEY: traced()}}


def test_an_unchanged_row_passes() -> None:
    assert complaints({KEY: traced()}, committed()) == []


@pytest.mark.parametrize(
    ("grew", "change"),
    [
        ("launches", lambda one: one._replace(forward=[*one.forward, Count("a"), Count("b")])),
        ("ms", lambda one: one._replace(backward=[Count("fill", triton=True, hbm=2e9)])),
        ("ms", lambda one: one._replace(backward=[hardest(PARTS=3)])),
        ("peak MB", lambda one: one._replace(peak=1_200_000)),
    ],
)
def test_a_growth_by_more_than_a_tenth_is_found(grew: str, change: Any) -> None:
    found = complaints({KEY: traced(change)}, committed())
    assert any(f"{KEY}: {grew} grew from" in line for line in found), found


def test_a_growth_within_a_tenth_passes() -> None:
    more = traced(lambda one: one._replace(peak=1_090_000))
    assert complaints({KEY: more}, committed()) == []


def test_a_row_that_the_sheet_lacks_is_named() -> None:
    (found,) = complaints({"new/N=128,bf16": traced()}, committed())
    assert found == "new/N=128,bf16 is not in the committed sheet"


def test_what_exceeds_eager_is_found_unless_it_is_known() -> None:
    row = traced()
    row["ours"]["peak MB"] = row["eager"]["peak MB"] + 1
    known = {"exceeds": [], "rows": {KEY: row}}
    assert complaints({KEY: row}, known) == [
        "max of hinges, N = 4,096, bf16: peak MB exceeds eager's"
    ]
    known["exceeds"] = ["max of hinges, N = 4,096, bf16: peak MB"]
    assert complaints({KEY: row}, known) == []


def test_eager_that_runs_out_of_memory_has_no_time_to_exceed() -> None:
    row = traced()
    row["eager"] |= {"ms": 0.0, "peak MB": 150_000}
    assert list(goals.exceeding({KEY: row})) == []


def test_goals_are_read_from_the_rows() -> None:
    row = traced()
    row["ours"]["ms"] = 4.0
    found = {goal.name: goal.holds for goal in goals.held({"max of hinges/N=32768,bf16": row})}
    assert found["max of hinges/N=32768,bf16: ms"]
    row["ours"]["ms"] = 5.1
    assert not goals.held({"max of hinges/N=32768,bf16": row})[0].holds


# -- the file --------------------------------------------------------------------------------------


def test_a_sheet_reads_back_as_it_was_written() -> None:
    whole = sheet.sheet_of({KEY: traced()})
    assert json.loads(sheet.written(whole)) == json.loads(json.dumps(whole))
    assert sheet.written(whole) == sheet.written(sheet.sheet_of({KEY: traced()}))


def test_the_committed_files_are_of_one_sheet() -> None:
    found = sheet.load()
    assert set(found["rows"]) == {case.key for case in sheet.cases(everything=True)}
    assert sheet.written(found) == sheet.FILE.read_text(encoding="utf-8")
    assert sheet.markdown(found) == sheet.FILE.with_suffix(".md").read_text(encoding="utf-8")
    assert found["exceeds"] == sorted(goals.exceeding(found["rows"]))


def test_inf_cl_multiplies_twenty_times() -> None:
    assert rivals.count_of("inf-cl", N).flop == 20 * N * N * D


def test_measured_rows_are_shown_beside_predicted_ones() -> None:
    row = traced()
    times = {"both": {"median": 2e-3}}
    record = {"operator": "max_of_hinges", "N": N, "D": D, "dtype": "bfloat16"}
    measured = {"rows": {"a": record | {"contenders": {"ours": times, "eager": {"status": "no"}}}}}
    ((key, who, predicted, found, ratio, *_),) = compare.compared({"rows": {KEY: row}}, measured)
    assert (key, who, found) == (KEY, "ours", "2")
    assert float(ratio) == pytest.approx(2 / float(predicted), rel=0.01)
