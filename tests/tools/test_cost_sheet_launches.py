"""Every loss, launched on meta tensors, has a cost that can be counted by hand.

`make cost-sheet`: without Triton, or interpreted, there are no launchers to run.
"""

import pytest
import torch

from itm_kernels import backends

if not backends.HAS_TRITON or backends.INTERPRETED:
    pytest.skip("triton needed, not interpreted", allow_module_level=True)

from benchmarks.cost_sheet import rates, sheet, small_batch
from benchmarks.cost_sheet.losses import LOSSES
from benchmarks.cost_sheet.trace import Trace, precision_of, traced

N, D = 4096, 1024
ONE = 2.0 * N * N * D


def trace(loss: str, precision: str = "bf16", N: int = N, D: int = D) -> Trace:
    with precision_of(precision) as dtype:
        return traced(LOSSES[loss].ours, LOSSES[loss].inputs(N, D, dtype))


def multiplied(found: Trace) -> tuple[float, float]:
    forward, backward = (sum(one.flop for one in part) for part in (found.forward, found.backward))
    return forward, backward


def test_max_of_hinges_multiplies_forward_only() -> None:
    assert multiplied(trace("max of hinges")) == (ONE, 0)


@pytest.mark.parametrize("loss", ["info_nce", "sum of hinges"])
def test_a_sum_over_pairs_multiplies_four_times(loss: str) -> None:
    forward, backward = multiplied(trace(loss, "tf32"))
    # Beside the pairs' products those of single rows.
    assert forward + backward == pytest.approx(4 * ONE, rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_kernel_of_a_loss_has_a_model(loss: str, precision: str) -> None:
    found = trace(loss, precision, N=130, D=96)
    assert any(count.triton for count in found.forward)
    assert all(count.hbm + count.l2 + count.instructions >= 0 for count in found.counts)


def test_launches_do_not_depend_on_the_order_of_traces() -> None:
    first = sheet.summary(trace("imc", N=257))
    trace("info_nce", N=257)
    assert sheet.summary(trace("imc", N=257)) == first


def test_keys_of_a_gallery_are_made_in_few_launches() -> None:
    many, few = (len(trace("ranks", N=rows).counts) for rows in (32768, 4096))
    assert many <= few + 20


def test_a_kernel_is_recorded_and_not_launched() -> None:
    found = trace("max of hinges", N=200)
    (count,) = (one for one in found.counts if one.name == "_hardest._hardest_kernel")
    assert count.flop == 2 * 256 * 256 * D  # four tiles of 64
    assert torch.get_float32_matmul_precision() == "highest"


def test_launches_of_a_synthesis_follow_its_parts() -> None:
    """But for the softmax and the product of every block of anchors."""
    parts = ("_cholesky", "_kam_solve", "_clusters._spans_kernel", "clamp")
    files = ("_clusters._sort_kernel", "kmeans.", "_centroids.", "_gathered_sums.")
    files = (*files, "kmeans_plus_plus")
    found, fixed = [], []
    for rows in (16384, 24576, 32768):
        names = [count.name for count in trace("info_cmr", N=rows).counts]
        found.append(sorted(name for name in names if name.startswith(parts)))
        fixed.append(sorted(name for name in names if name.startswith(files)))
    assert fixed[0] == fixed[1] == fixed[2]
    # Two sides, forward only: 47 launches of 16 panels, two substitutions, spans, starts. Eight
    # clusters are one part at 16,384 rows, two at 24,576, three at 32,768. Spans of groups of
    # columns, forward and backward, are those of all parts.
    assert [len(names) for names in found] == [2 * (51 * many + 2) for many in (1, 2, 3)]
    # Two sides: per iteration nearest centroids and sums, and the means of the partial sums.
    assert sum(name.startswith("kmeans.") for name in fixed[0]) == 2 * 11
    assert sum(name.startswith("_gathered_sums.") for name in fixed[0]) == 2 * 10
    assert sum(name.startswith("_centroids.") for name in fixed[0]) == 2 * 11


def test_few_programs_take_as_long_as_their_own_work() -> None:
    # 3 tiles of 64 x 64 on as many processors: two instructions for every pair of numbers.
    found = small_batch.of_triton("intra_modal, l1", 128, "fp32")
    tile = next(count for count in found if count.name == "_upper_triangle.band_sums_kernel")
    clocks = 1e-6 * small_batch.in_graph([tile], 0) * rates.CLOCK
    assert 64 * 64 * 2 * D / 128 < clocks < 1.1 * 64 * 64 * 2 * D / 128
    assert len(small_batch.of_triton("max_of_hinges", 128, "bf16")) == 5
