"""Ranks on the kernels of CPUs and Triton: tiles, ties, precisions, values that are not finite."""

from typing import Any

import pytest
import torch
from torch import Tensor

from interpreted import beyond_finite
from itm_kernels import ops
from itm_kernels.ops._ranks import row_keys
from kernels import cases, on
from random_tensors import LOW_PRECISIONS, ids, rows, whole

both = on("native", "triton")
DTYPES = (*LOW_PRECISIONS, torch.float64)
# One row, one column; one less and one more than a vector or a tile; D aligned to nothing, ragged.
SIZES = [(1, 1, 1), (2, 33, 3), (33, 127, 96), (127, 2, 333), (5, 1, 1000)]


def check_ranks(backend: str, *inputs: Tensor) -> None:
    found, wanted = (ops.ranks(*inputs, backend=name) for name in (backend, "reference"))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(("Q", "G", "D"), SIZES)
@both
def test_ranks(backend_name: str, Q: int, G: int, D: int) -> None:
    labels = ids(Q, 9, 1), ids(G, 9, 2)  # some queries without a positive, some with several
    check_ranks(backend_name, rows(Q, D), rows(G, D, seed=1), *labels)
    for dtype in LOW_PRECISIONS:
        check_ranks(
            backend_name, whole(Q, D, dtype=dtype), whole(G, D, seed=1, dtype=dtype), *labels
        )
    check_ranks(backend_name, rows(D, Q).T, rows(2 * G, 2 * D, seed=1)[::2, 1::2], *labels)


@cases("groups", native=[3, 500, 40000])
def test_ranks_over_many_tiles(backend_name: str, groups: int) -> None:
    # 4,500 candidates are 3 tiles: positives in all of them, in few, or mostly in none.
    labels = ids(700, groups, 1), ids(4500, groups, 2)
    check_ranks(backend_name, rows(700, 5), rows(4500, 5, seed=1), *labels)
    check_ranks(backend_name, whole(700, 5), whole(4500, 5, seed=1), *labels)


@pytest.mark.parametrize(("Q", "G", "programs"), [(200, 150, 256), (3, 700, 256), (70, 400, 4)])
@cases("groups", triton=[1, 3, 100, 40000])
def test_ranks_over_many_programs(
    backend_name: str, Q: int, G: int, programs: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few programs take several tiles each. Ids are sorted by counting, and by the library.
    monkeypatch.setattr("itm_kernels.triton.ranks._PROGRAMS", programs)
    monkeypatch.setattr("itm_kernels.triton._id_order._FEW", 8192 if programs > 4 else 1)
    # Positives everywhere, in many tiles, in few, or mostly nowhere; ids far apart and negative.
    labels = 10**12 * (ids(Q, groups, 1) - 50), 10**12 * (ids(G, groups, 2) - 50)
    check_ranks(backend_name, rows(Q, 5), rows(G, 5, seed=1), *labels)
    check_ranks(backend_name, whole(Q, 5), whole(G, 5, seed=1), *labels)


@pytest.mark.parametrize("dtype", LOW_PRECISIONS, ids=str)
@pytest.mark.parametrize("D", [33, 128])
@both
def test_a_positive_is_never_behind_itself(backend_name: str, dtype: torch.dtype, D: int) -> None:
    """Scores of other rows may round past each other, a score may not pass itself."""
    queries, gallery = rows(150, D, dtype=dtype), rows(200, D, seed=1, dtype=dtype)
    labels = ids(150, 70, 1), ids(200, 70, 2)
    scores = queries.double() @ gallery.double().T
    same = labels[0][:, None] == labels[1]
    apart = scores - scores.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
    # Among rows a rounding apart either may be above; positives may not.
    within = 4 * torch.finfo(torch.float32).eps * D
    surely, perhaps = (apart > within) & ~same, (apart > -within) & ~same
    found = ops.ranks(queries, gallery, *labels, backend=backend_name)
    assert ((found.above >= surely.sum(1)) & (found.above <= perhaps.sum(1))).all()


# Native: the last two rows are the positives of every query. Cut at 2,048, the copies of 1,025 rows
# would leave only their copies to a tile of two columns, whose product rounds differently.
@cases(
    "G, dtype",
    native=[(100, torch.float32), (1025, torch.float32), (2100, torch.float32)],
    triton=[(100, None)],
)
def test_equal_candidates_tie_in_every_tile(
    backend_name: str, G: int, dtype: torch.dtype | None
) -> None:
    """A row with the positive's values is not above it, though another tile computes its score."""
    gallery, queries = (
        rows(G, 77, seed=k, dtype=dtype) if dtype else whole(G, 77, seed=k) for k in (0, 1)
    )
    labels, own = torch.arange(G), G - 1 - torch.arange(G) % 2
    once = ops.ranks(queries, gallery, own, labels, backend=backend_name)
    twice = torch.cat((gallery, gallery)), torch.cat((labels, labels + 10 * G))
    found = ops.ranks(queries, twice[0], own, twice[1], backend=backend_name)
    assert torch.equal(found.above, 2 * once.above)
    assert torch.equal(found.ties, 2 * once.ties + once.positives)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@cases(
    "Q, G, query_groups, groups",
    native=[(300, 250, 200, 50), (300, 2100, 200, 50), (300, 4099, 200, 50)],  # three tiles
    triton=[(70, 130, 50, 40)],
)
def test_equal_rows_tie_in_every_tile(
    backend_name: str, Q: int, G: int, query_groups: int, groups: int, dtype: torch.dtype
) -> None:
    queries, dead = rows(Q, 77, dtype=dtype), rows(1, 77, seed=1, dtype=dtype).repeat(G, 1)
    labels = torch.arange(Q) % query_groups, torch.arange(G) % groups
    found = ops.ranks(queries, dead, *labels, backend=backend_name)
    check_ranks(backend_name, queries, dead, *labels)
    own = (labels[0][:, None] == labels[1]).sum(1)
    assert torch.equal(found.ties, (G - own) * (own > 0))
    assert torch.equal(found.positives, own)
    assert torch.equal(found.above, G * (own == 0))


@beyond_finite
@pytest.mark.parametrize("setting", ["highest", "high"])
@both
def test_ranks_of_values_that_are_not_finite(backend_name: str, setting: str) -> None:
    queries, gallery = rows(4, 3), rows(5, 3, seed=1)
    queries[1], gallery[2, 0], queries[3, 1] = torch.nan, torch.nan, torch.inf
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        for dtype in DTYPES:
            inputs = queries.to(dtype), gallery.to(dtype)
            check_ranks(backend_name, *inputs, torch.arange(4), torch.arange(5))
            # Among several positives the finite ones count; copies of a positive are not above it.
            several = inputs[0], inputs[1].repeat(2, 1)
            check_ranks(backend_name, *several, torch.arange(4), torch.arange(10) % 3)
    finally:
        torch.set_float32_matmul_precision(before)


@on("native")
def test_ranks_of_scores_that_overflow(backend_name: str) -> None:
    queries, gallery = rows(4, 3), rows(5, 3, seed=1)
    queries[1], gallery[2, 0], queries[3, 1] = torch.nan, torch.nan, torch.inf
    gallery = torch.cat((gallery, gallery))
    gallery[4:6] *= 1e300
    check_ranks(backend_name, queries.mul(1e300), gallery, torch.arange(4), torch.arange(10) % 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both
def test_keys_of_rows_are_the_same_on_every_path(backend_name: str, dtype: torch.dtype) -> None:
    """A gallery's blocks may be hashed on one path, and compared with keys of another."""
    for G, D in ((1, 1), (5, 3), (130, 333), (67, 128)):
        x = torch.randn(G, 2 * D).to(dtype)
        x[0, 0], x[-1, -1] = -0.0, torch.inf
        for side in (x, x.T.contiguous().T, x[:, ::2], x[:1].expand(G, -1)):
            assert torch.equal(
                row_keys(side, backend=backend_name), row_keys(side, backend="reference")
            )
        assert row_keys(x, backend=backend_name)[0] == row_keys(x + 0.0)[0]


@on("triton")
def test_ranks_and_keys_have_no_gradient(backend_name: str) -> None:
    x, labels = rows(5, 3).requires_grad_(), torch.arange(5)
    found = ops.ranks(x, x, labels, labels, backend=backend_name)
    assert not any(part.requires_grad for part in found)
    compiled = torch.compile(ops.ranks, fullgraph=True, backend="aot_eager")
    again = compiled(x, x, labels, labels, backend=backend_name)
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("few", [8192, 1])
@pytest.mark.parametrize(("Q", "G"), [(1, 1), (2, 300), (300, 2), (700, 700)])
@on("triton")
def test_order_of_ids(
    kernels: Any, Q: int, G: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from itm_kernels.triton import _id_order

    monkeypatch.setattr(_id_order, "_FEW", few)
    x_ids, y_ids = 2**62 - ids(Q, 50, 1), 2**62 - ids(G, 50, 2)
    x_ids[0] = y_ids[-1] = -(2**63)
    order, counts = _id_order.order_by_id(x_ids, y_ids)
    assert torch.equal(order.query.long(), x_ids.argsort(stable=True))
    assert torch.equal(order.candidate.long(), y_ids.argsort(stable=True))
    own, gallery = x_ids.sort().values, y_ids.sort().values
    assert torch.equal(order.first.long(), torch.searchsorted(gallery, own))
    assert torch.equal(order.end.long(), torch.searchsorted(gallery, own, right=True))
    assert torch.equal(counts.negatives, (x_ids[:, None] != y_ids).sum(1))
    assert not any(count.any() for count in counts[1:4])
