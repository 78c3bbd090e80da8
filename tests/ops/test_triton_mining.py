"""Triton's sampling and ranks: promised noise, tiles, ties, precisions; in the interpreter."""

import numpy as np
import pytest
import torch
from torch import Tensor

from compiled import needs_extension
from itm_kernels import ops, reference
from itm_kernels.ops._ranks import Ranks, row_keys
from kernels import MARKS
from oracles import noise

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
gumbel = pytest.importorskip("itm_kernels.triton._gumbel").gumbel
pytestmark = MARKS["triton"]

HALVES = (torch.float16, torch.bfloat16, torch.float32)
# One row, one column; less than a tile; two tiles of 64, ragged; D aligned to nothing, or ragged.
SIZES = [(1, 1, 1), (2, 33, 3), (33, 127, 96), (127, 2, 333), (5, 1, 1000)]


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def whole(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return small integers: their products are exact in every precision, and tie often."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype)


def ids(size: int, groups: int, seed: int) -> Tensor:
    return torch.randint(groups, (size,), generator=torch.Generator().manual_seed(seed))


# -- sampling --------------------------------------------------------------------------------------

SEED = torch.tensor([0x123456789ABCDEF0, 2**63 - 5])


def sample(
    image: Tensor, text: Tensor, strategy: str, t: float, *labels: Tensor, seed: Tensor = SEED
) -> tuple[Tensor, Tensor]:
    operator = torch.ops.itm_triton.sample_negatives
    return operator(image, text, *(labels or (None, None)), strategy, t, seed)


def test_published_words_of_philox() -> None:
    """kat_vectors of Random123, philox4x32 10: the oracle that the kernels are held against."""
    high, pi = 0xFFFFFFFF, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    for counter, key, words in (
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([high] * 4, [high] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi[:4], pi[4:], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        assert noise.philox(counter, key) == [int(word, 16) for word in words.split()]


@pytest.mark.parametrize(("N", "M", "D"), [*SIZES, (3, 300, 3), (130, 2, 3)])
@pytest.mark.parametrize(
    ("strategy", "temperature"), [("multinomial", 0.3), ("multinomial", 3.0), ("uniform", 0.1)]
)
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_draws_are_scores_plus_promised_noise(
    N: int, M: int, D: int, strategy: str, temperature: float, dtype: torch.dtype
) -> None:
    image, text = (
        torch.nn.functional.normalize(rows(size, D, seed=size), dim=1).to(dtype) for size in (N, M)
    )
    labels = ids(N, 5, 1), ids(M, 5, 2)
    scores = image.double() @ text.double().T
    logits = scores / temperature if strategy == "multinomial" else 0 * scores
    same = labels[0][:, None] == labels[1]
    promised = torch.tensor(noise.gumbel_of_pairs(tuple(SEED.tolist()), N, M))
    drawn = (logits + promised).masked_fill(same, -torch.inf)
    # Noise, up to 23, and logits in fp32: what lies as near to the best may win.
    within = 4 * torch.finfo(torch.float32).eps * (23 + logits.abs().max())
    found = sample(image, text, strategy, temperature, *labels)
    for index, of_pairs, dim in zip(found, drawn, (1, 0), strict=True):
        assert torch.equal(index < 0, same.all(dim))
        best = of_pairs.amax(dim)
        won = of_pairs.gather(dim, index.clamp_min(0).unsqueeze(dim)).squeeze(dim)
        assert ((best - won <= within) | (index < 0)).all()


@pytest.mark.parametrize("seed", [[0, 0], [-1, -(2**63)], [2**32, 2**32 - 1]])
def test_every_bit_of_the_seed_counts(seed: list[int]) -> None:
    found = sample(rows(70, 1), rows(99, 1), "uniform", 1.0, seed=torch.tensor(seed))
    drawn = noise.gumbel_of_pairs(tuple(word % 2**64 for word in seed), 70, 99)
    for of_pairs in drawn:
        np.fill_diagonal(of_pairs, -np.inf)
    assert found[0].tolist() == drawn[0].argmax(1).tolist()
    assert found[1].tolist() == drawn[1].argmax(0).tolist()


@triton.jit
def _noise_kernel(words, found, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(found + at, gumbel(tl.load(words + at).to(tl.uint32)))


def test_noise_is_precise_in_both_tails() -> None:
    at = torch.arange(4096)
    edges = [at, 2**30 - 2048 + at, 2**31 - 2048 + at, 2**32 - 1 - at, 2**20 * at, 1 << (at % 32)]
    for words in edges:
        found = torch.empty(4096)
        _noise_kernel[(1,)](words, found, SIZE=4096)
        exact = torch.tensor(noise.gumbel(words.numpy()))
        assert ((found - exact).abs() <= 5e-7 * exact.abs().clamp_min(1)).all()


@needs_extension
@pytest.mark.parametrize("strategy", ["multinomial", "uniform"])
def test_both_kernels_draw_the_same(strategy: str) -> None:
    image, text, labels = rows(130, 7), rows(201, 7, seed=1), (ids(130, 9, 1), ids(201, 9, 2))
    native = torch.ops.itm_native.sample_negatives(image, text, *labels, strategy, 0.5, SEED)
    assert all(map(torch.equal, native, sample(image, text, strategy, 0.5, *labels)))


@pytest.mark.parametrize(("N", "M", "D"), [*SIZES, (130, 70, 3)])
def test_hardest_is_the_largest_score(N: int, M: int, D: int) -> None:
    labels = ids(N, 5, 1), ids(M, 5, 2)
    for dtype in (torch.float64, *HALVES):
        image, text = whole(N, D, dtype=dtype), whole(M, D, seed=1, dtype=dtype)
        text[M // 2, 0] = torch.nan
        wanted = reference.sample_negatives(image, text, *labels, "hardest", 0.07, None)
        found = sample(image, text, "hardest", 0.07, *labels)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("strategy", ["multinomial", "uniform", "hardest"])
def test_strides_do_not_matter_and_draws_repeat(strategy: str) -> None:
    wide = rows(70, 2 * 40)
    image, text = wide[:, ::2], rows(40, 70, seed=1).T
    found = sample(image, text, strategy, 0.1)
    for sides in ((image, text), (image.contiguous(), text.contiguous())):
        assert all(map(torch.equal, found, sample(*sides, strategy, 0.1)))
    pair = torch.stack([SEED, SEED], 1)[:, 0]  # a seed need not be contiguous
    assert all(map(torch.equal, found, sample(image, text, strategy, 0.1, seed=pair)))


def test_no_negative_is_no_draw_and_nan_is_drawn() -> None:
    image, text, one = rows(5, 3), rows(5, 3, seed=1), torch.ones(5, dtype=torch.int64)
    for strategy in ("multinomial", "uniform", "hardest"):
        alone = sample(image[:1], text[:1], strategy, 0.1)
        of_one = sample(image, text, strategy, 0.1, one, one)
        assert all((index == -1).all() for index in (*alone, *of_one))
    text[3, 1] = torch.nan
    found = sample(image, text, "multinomial", 0.1)
    assert found[0].tolist()[:3] == [3, 3, 3]
    assert found[1][3] == 0  # of several, the first
    # Nothing of the rows is read where all negatives are alike.
    found = sample(image, text, "uniform", 0.1)
    assert all(map(torch.equal, found, sample(text, image, "uniform", 0.1)))


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_no_temperature_leaves_the_range_of_fp32(temperature: float) -> None:
    image, text = rows(40, 3, dtype=torch.float32), rows(40, 3, seed=1, dtype=torch.float32)
    limit = sample(image, text, "hardest" if temperature < 1 else "uniform", 1.0)
    assert all(map(torch.equal, sample(image, text, "multinomial", temperature), limit))


# -- ranks -----------------------------------------------------------------------------------------


def ranks(*inputs: Tensor) -> Ranks:
    return ops.ranks(*inputs, backend="triton")


def check_ranks(*inputs: Tensor) -> None:
    assert all(map(torch.equal, ranks(*inputs), ops.ranks(*inputs, backend="reference")))


@pytest.mark.parametrize(("Q", "G", "D"), SIZES)
def test_ranks(Q: int, G: int, D: int) -> None:
    labels = ids(Q, 9, 1), ids(G, 9, 2)  # some queries without a positive, some with several
    check_ranks(rows(Q, D), rows(G, D, seed=1), *labels)
    for dtype in HALVES:
        check_ranks(whole(Q, D, dtype=dtype), whole(G, D, seed=1, dtype=dtype), *labels)
    check_ranks(rows(D, Q).T, rows(2 * G, 2 * D, seed=1)[::2, 1::2], *labels)


@pytest.mark.parametrize(("Q", "G", "programs"), [(200, 150, 256), (3, 700, 256), (70, 400, 4)])
@pytest.mark.parametrize("groups", [1, 3, 100, 40000])
def test_ranks_over_many_tiles(
    Q: int, G: int, programs: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few programs take several tiles each. Ids are sorted by counting, and by the library.
    monkeypatch.setattr("itm_kernels.triton.ranks._PROGRAMS", programs)
    monkeypatch.setattr("itm_kernels.triton._id_order._FEW", 8192 if programs > 4 else 1)
    # Positives everywhere, in many tiles, in few, or mostly nowhere; ids far apart and negative.
    labels = 10**12 * (ids(Q, groups, 1) - 50), 10**12 * (ids(G, groups, 2) - 50)
    check_ranks(rows(Q, 5), rows(G, 5, seed=1), *labels)
    check_ranks(whole(Q, 5), whole(G, 5, seed=1), *labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("D", [33, 128])
def test_a_positive_is_never_behind_itself(dtype: torch.dtype, D: int) -> None:
    """Scores of other rows may round past each other, a score may not pass itself."""
    queries, gallery = rows(150, D, dtype=dtype), rows(200, D, seed=1, dtype=dtype)
    labels = ids(150, 70, 1), ids(200, 70, 2)
    scores = queries.double() @ gallery.double().T
    same = labels[0][:, None] == labels[1]
    apart = scores - scores.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
    # Of rows a rounding apart either may be above; of the positives, none.
    within = 4 * torch.finfo(torch.float32).eps * D
    surely, perhaps = (apart > within) & ~same, (apart > -within) & ~same
    found = ranks(queries, gallery, *labels)
    assert ((found.above >= surely.sum(1)) & (found.above <= perhaps.sum(1))).all()


def test_equal_candidates_tie_wherever_they_stand() -> None:
    """Another row with the positive's values is not above it, though another tile scores it."""
    gallery, queries = whole(100, 77), whole(100, 77, seed=1)
    labels, own = torch.arange(100), 99 - torch.arange(100) % 2
    once = ranks(queries, gallery, own, labels)
    twice = torch.cat((gallery, gallery)), torch.cat((labels, labels + 1000))
    found = ranks(queries, twice[0], own, twice[1])
    assert torch.equal(found.above, 2 * once.above)
    assert torch.equal(found.ties, 2 * once.ties + once.positives)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_equal_rows_tie_in_every_tile(dtype: torch.dtype) -> None:
    queries, dead = rows(70, 77, dtype=dtype), rows(1, 77, seed=1, dtype=dtype).repeat(130, 1)
    labels = torch.arange(70) % 50, torch.arange(130) % 40
    check_ranks(queries, dead, *labels)
    own = (labels[0][:, None] == labels[1]).sum(1)
    assert torch.equal(ranks(queries, dead, *labels).ties, (130 - own) * (own > 0))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_keys_of_rows_are_those_of_every_path(dtype: torch.dtype) -> None:
    """A gallery's blocks may be hashed on one path, and compared with keys of another."""
    for G, D in ((1, 1), (5, 3), (130, 333), (67, 128)):
        x = torch.randn(G, 2 * D).to(dtype)
        x[0, 0], x[-1, -1] = -0.0, torch.inf
        for side in (x, x.T.contiguous().T, x[:, ::2], x[:1].expand(G, -1)):
            assert torch.equal(row_keys(side, backend="triton"), row_keys(side))
        assert row_keys(x, backend="triton")[0] == row_keys(x + 0.0)[0]


def test_ranks_and_keys_of_the_triton_namespace_take_no_gradient() -> None:
    x, labels = rows(5, 3).requires_grad_(), torch.arange(5)
    found = ops.ranks(x, x, labels, labels, backend="triton")
    assert not any(part.requires_grad for part in found)
    compiled = torch.compile(ops.ranks, fullgraph=True, backend="aot_eager")
    again = compiled(x, x, labels, labels, backend="triton")
    assert all(map(torch.equal, found, again))


@pytest.mark.parametrize("few", [8192, 1])
@pytest.mark.parametrize(("Q", "G"), [(1, 1), (2, 300), (300, 2), (700, 700)])
def test_order_of_ids(Q: int, G: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("setting", ["highest", "high"])
def test_ranks_of_what_is_not_finite(setting: str) -> None:
    queries, gallery = rows(4, 3), rows(5, 3, seed=1)
    queries[1], gallery[2, 0], queries[3, 1] = torch.nan, torch.nan, torch.inf
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        for dtype in (torch.float64, *HALVES):
            inputs = queries.to(dtype), gallery.to(dtype)
            check_ranks(*inputs, torch.arange(4), torch.arange(5))
            # Of several positives the finite ones count.
            check_ranks(inputs[0], inputs[1].repeat(2, 1), torch.arange(4), torch.arange(10) % 3)
    finally:
        torch.set_float32_matmul_precision(before)
