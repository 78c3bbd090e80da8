"""The cost sheet lists the launches that the CUDA launchers make for small batches."""

from collections import Counter
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from benchmarks.cost_sheet import cuda_models, small_batch
from benchmarks.cost_sheet.cuda_models import Batch
from benchmarks.cost_sheet.small_batch import OPERATORS
from benchmarks.cost_sheet.small_operators import step
from cuda_launches import Counting
from emulated import as_native, needs_compiler, noting
from itm_kernels import _checks, backends

# Blocks that a model counts differently: none, but of launches that go in rounds of anchors, which
# are fewer on the emulator, so that tests see several.
ROUNDS = ("synthesis_kernel", "anchor_gradient_kernel", "member_gradient_kernel")


def once(names: list[str]) -> Iterator[str]:
    """Leave out the second round of a launch, or of two in turn, and those behind it."""
    for i, name in enumerate(names):
        if name not in ROUNDS or name not in names[max(0, i - 2) : i]:
            yield name


@needs_compiler
@pytest.mark.parametrize("N", [128, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_cuda_launches_what_the_table_counts(name: str, dtype: torch.dtype, N: int) -> None:
    operator = OPERATORS[name]
    counts = operator.launches(Batch(N, dtype.itemsize))
    inputs = operator.inputs(N, dtype, "cpu")
    # On a device no loss reads values.
    with as_native(), patch.object(_checks, "can_read", return_value=False):
        with noting() as grids, Counting() as aten:
            step(operator.run, inputs, "native")
    own = [count.name for count in counts if count.triton]
    assert list(once([grid.kernel for grid in grids])) == own
    others = Counter(count.name for count in counts if not count.triton)
    assert aten.found - Counter(empty_like=9) == others


@needs_compiler
@pytest.mark.parametrize("N", [2, 33, 128, 256, 300, 512, 1024])
def test_a_product_is_split_as_the_launcher_splits_it(N: int) -> None:
    batch, operator = Batch(N), OPERATORS["max_of_hinges"]
    with as_native(), noting() as grids:
        step(operator.run, operator.inputs(N, torch.float32, "cpu"), "native")
    assert [grid.blocks for grid in grids] == [
        batch.blocks,
        cuda_models.score_reduction("", batch).programs,
        cuda_models.gather(batch, 0).programs,
    ]


def test_a_chain_is_its_trips_beyond_those_of_every_launch() -> None:
    seconds = cuda_models.waiting("", 1, 12).seconds
    assert seconds == pytest.approx(10 * 0.145e-6)
    assert cuda_models.waiting("", 1, 1).seconds == 0


def test_few_blocks_read_no_faster_than_their_processors() -> None:
    alone = cuda_models.waiting("", 1, 2, each=64e6)
    assert alone.seconds == pytest.approx(1e6 / 1.98e9)
    assert cuda_models.waiting("", 132, 2, each=64e6).seconds == alone.seconds
    assert cuda_models.waiting("", 133, 2, each=64e6).seconds == 2 * alone.seconds


def test_a_product_takes_no_less_than_its_reads_of_shared_memory() -> None:
    # Two blocks a processor, 72 clocks for two columns: a third of what the units could do.
    batch = Batch(512)
    assert batch.parts == (1, 1024) and batch.blocks == 256
    clocks = cuda_models.distances(batch).seconds * 1.98e9
    assert clocks == pytest.approx(1024 / 2 * 72 + 1024 / 16 * 40)
    flop = 2 * 512 * 512 * 1024 / cuda_models.distances(batch).seconds
    assert 20e12 < flop < 30e12 < 67e12


def times(ratio: float) -> small_batch.Times:
    return small_batch.Times(10.0, 8.0, 10.0 * ratio, (ratio, ratio), (3, 6))


def test_cuda_stays_where_one_size_is_worth_it() -> None:
    near = {("bf16", N): times(1.4) for N in small_batch.SIZES}
    assert small_batch.goes(near)
    assert not small_batch.goes(near | {("fp32", 128): times(1.6)})
    found = small_batch.complaints({"new": near, "intra_modal, l1": near})
    assert found == [
        "new: Triton is within 1.5 times CUDA's time at every size: remove its CUDA kernels"
    ]


def test_every_launch_of_a_graph_costs_a_node_and_two_trips() -> None:
    small = OPERATORS["max_of_hinges"].launches(Batch(128))
    more = small_batch.in_graph(small, 2e-6) - small_batch.in_graph(small, 1e-6)
    assert more == pytest.approx(3)
    assert small_batch.in_graph([cuda_models.waiting("", 1, 2)], 1e-6) == pytest.approx(1.29)


def test_the_committed_table_has_every_operator() -> None:
    words = small_batch.FILE.read_text(encoding="utf-8")
    assert words.startswith(small_batch.HEAD)
    for name in OPERATORS:
        assert words.count(f"| {name} |") == 3, name


def test_auto_takes_cuda_up_to_the_rows_of_the_table() -> None:
    words = small_batch.FILE.read_text(encoding="utf-8").split("## Decisions")[1]
    found: dict[str, int] = {}
    for name in OPERATORS:
        (line,) = (line for line in words.splitlines() if line.startswith(f"| {name} |"))
        rows = line.split("|")[3].strip()
        operator = name.split(",")[0]
        found[operator] = max(found.get(operator, 0), 0 if rows == "none" else int(rows))
    for operator, rows in found.items():
        first = backends.RANGES["cuda", "native", operator, ""].first_rows
        if operator.endswith("_total"):
            assert 256 == first <= rows, operator
        else:
            assert first in (rows, backends.MANY), operator
