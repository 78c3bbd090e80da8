"""Compiled ranks and sampling: tiles, ties, noise, instruction sets (of k-means too)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from compiled import HIGHEST, on, run_with
from itm_kernels import ops, reference
from itm_kernels.mining import HardNegativeSampler
from kernels import MARKS
from random_tensors import LOW_PRECISIONS, ids, rows, whole

pytestmark = MARKS["native"]

# One row, one column, one below and above what a vector or a block of noise holds.
SIZES = [(1, 1, 1), (2, 33, 3), (33, 127, 96), (127, 2, 333), (5, 1, 1000)]


def check_ranks(*inputs: Tensor) -> None:
    found = ops.ranks(*inputs, backend="native")
    assert all(map(torch.equal, found, ops.ranks(*inputs, backend="reference")))


@pytest.mark.parametrize("Q, G, D", SIZES)
def test_ranks(Q: int, G: int, D: int) -> None:
    labels = ids(Q, 9, 1), ids(G, 9, 2)  # some queries without a positive, some with several
    check_ranks(rows(Q, D), rows(G, D, seed=1), *labels)
    for dtype in LOW_PRECISIONS:
        check_ranks(whole(Q, D, dtype=dtype), whole(G, D, seed=1, dtype=dtype), *labels)
    check_ranks(rows(D, Q).T, rows(2 * G, 2 * D, seed=1)[::2, 1::2], *labels)


@pytest.mark.parametrize("groups", [3, 500, 40000])
def test_ranks_over_many_tiles(groups: int) -> None:
    # 4,500 candidates are 3 tiles: positives in all of them, in few, or mostly in none.
    labels = ids(700, groups, 1), ids(4500, groups, 2)
    check_ranks(rows(700, 5), rows(4500, 5, seed=1), *labels)
    check_ranks(whole(700, 5), whole(4500, 5, seed=1), *labels)


@pytest.mark.parametrize("G", [100, 1025, 2100])
def test_equal_candidates_tie_wherever_they_stand(G: int) -> None:
    """Another row with the positive's values is not above it, though another tile scores it."""
    # The last two rows are everybody's positives. Cut at 2,048, the copies of 1,025 rows would
    # leave just their copies to a tile of two columns, whose product rounds differently.
    gallery, queries = (rows(G, 77, seed=k, dtype=torch.float32) for k in (0, 1))
    labels, own = torch.arange(G), G - 1 - torch.arange(G) % 2
    once = ops.ranks(queries, gallery, own, labels, backend="native")
    twice = torch.cat((gallery, gallery)), torch.cat((labels, labels + 10 * G))
    found = ops.ranks(queries, twice[0], own, twice[1], backend="native")
    assert torch.equal(found.above, 2 * once.above)
    assert torch.equal(found.ties, 2 * once.ties + once.positives)


@pytest.mark.parametrize("dtype", [*LOW_PRECISIONS, torch.float64])
@pytest.mark.parametrize("G", [250, 2100, 4099])  # 4,099 are three tiles
def test_equal_rows_tie_in_every_tile(G: int, dtype: torch.dtype) -> None:
    queries, dead = rows(300, 77, dtype=dtype), rows(1, 77, seed=1, dtype=dtype).repeat(G, 1)
    labels = torch.arange(300) % 200, torch.arange(G) % 50
    found = ops.ranks(queries, dead, *labels, backend="native")
    check_ranks(queries, dead, *labels)
    own = (labels[0][:, None] == labels[1]).sum(1)
    assert torch.equal(found.ties, (G - own) * (own > 0))
    assert torch.equal(found.positives, own)
    assert torch.equal(found.above, G * (own == 0))


def test_ranks_of_what_is_not_finite() -> None:
    queries, gallery = rows(4, 3), rows(5, 3, seed=1)
    queries[1], gallery[2, 0], queries[3, 1] = torch.nan, torch.nan, torch.inf
    check_ranks(queries, gallery, torch.arange(4), torch.arange(5))
    # Of several positives the finite ones count; a copy of a positive is none of its betters.
    gallery = torch.cat((gallery, gallery))
    check_ranks(queries, gallery, torch.arange(4), torch.arange(10) % 3)
    gallery[4:6] *= 1e300
    check_ranks(queries.mul(1e300), gallery, torch.arange(4), torch.arange(10) % 4)


def noise(seed: Tensor, N: int, M: int) -> Tensor:  # [2, N, M]
    """Return the noise of both directions, from the layout that philox.h promises."""
    halves = [int(half) for word in seed for half in (word & 0xFFFFFFFF, word >> 32)]
    key, stream = halves[:2], halves[2:]
    words = [
        [torch.ops.itm_testing.philox([j, i, *stream], key) for j in range((M + 1) // 2)]
        for i in range(N)
    ]
    u = (torch.tensor(words, dtype=torch.float64).view(N, -1, 2, 2) + 0.5) / 2**32
    return -(-(-u).log1p()).log().permute(2, 0, 1, 3).reshape(2, N, -1)[..., :M]


def sample(image: Tensor, text: Tensor, seed: Tensor, strategy: str, t: float, *labels: Tensor):
    operator = torch.ops.itm_native.sample_negatives
    return operator(image, text, *(labels or (None, None)), strategy, t, seed)


SEED = torch.tensor([0x123456789ABCDEF0, 2**63 - 5])


@pytest.mark.parametrize("N, M, D", [*SIZES, (130, 2100, 3), (290, 2, 3)])
@pytest.mark.parametrize(
    "strategy, temperature", [("multinomial", 0.3), ("multinomial", 3.0), ("uniform", 0.1)]
)
def test_draws_are_scores_plus_promised_noise(N, M, D, strategy, temperature) -> None:
    image, text, labels = rows(N, D), rows(M, D, seed=1), (ids(N, 5, 1), ids(M, 5, 2))
    logits = image @ text.T / temperature if strategy == "multinomial" else torch.zeros(N, M)
    same = labels[0][:, None] == labels[1]
    drawn = (logits + noise(SEED, N, M)).masked_fill(same, -torch.inf)
    found = sample(image, text, SEED, strategy, temperature, *labels)
    for index, dim in zip(found, (1, 0), strict=True):
        best = drawn[1 - dim].argmax(dim)
        assert torch.equal(index, best.masked_fill(same.all(dim), -1))


@pytest.mark.parametrize("N, M, D", [*SIZES, (300, 2100, 3)])
def test_hardest_is_the_largest_score(N: int, M: int, D: int) -> None:
    labels = ids(N, 5, 1), ids(M, 5, 2)
    for dtype in LOW_PRECISIONS:
        image, text = whole(N, D, dtype=dtype), whole(M, D, seed=1, dtype=dtype)
        text[M // 2, 0] = torch.nan
        wanted = reference.sample_negatives(image, text, *labels, "hardest", 0.07, None)
        found = sample(image, text, SEED, "hardest", 0.07, *labels)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_no_negative_is_no_draw_and_nan_is_drawn() -> None:
    image, text = rows(5, 3), rows(5, 3, seed=1)
    for strategy in ("multinomial", "uniform", "hardest"):
        alone = sample(image[:1], text[:1], SEED, strategy, 0.1)
        one_id = sample(
            image, text, SEED, strategy, 0.1, torch.ones(5).long(), torch.ones(5).long()
        )
        assert all((index == -1).all() for index in (*alone, *one_id))
    text[3, 1] = torch.nan
    found = sample(image, text, SEED, "multinomial", 0.1)
    assert found[0].tolist()[:3] == [3, 3, 3]
    assert found[1][3] == 0  # of several, the first
    # Nothing of the rows is read where all negatives are alike.
    found = sample(image, text, SEED, "uniform", 0.1)
    assert all(map(torch.equal, found, sample(text, image, SEED, "uniform", 0.1)))


def test_published_words_of_philox() -> None:
    """kat_vectors of Random123, philox4x32 10."""
    high, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
    for counter, key, words in (
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([high] * 4, [high] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi[:4], pi[4:], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        assert torch.ops.itm_testing.philox(counter, key) == [
            int(word, 16) for word in words.split()
        ]


def test_noise_is_precise_in_both_tails() -> None:
    at = torch.arange(5000)
    edges = [at, 2**30 - 2500 + at, 2**31 - 2500 + at, 2**32 - 1 - at, 858993 * at]
    words = torch.cat([*edges, ids(100000, 2**32, 0)])
    found = torch.ops.itm_testing.gumbel(words).double()
    exact = -(-(-(words.double() + 0.5) / 2**32).log1p()).log()
    assert ((found - exact).abs() <= 5e-7 * exact.abs().clamp_min(1)).all()


SCORES = torch.tensor([[2.0, 1, 0], [0, 3, 1], [1, 1, 1]])  # as in test_hand_checks.py
LIKELY = np.array([[0, 0.7310586, 0.2689414], [0.2689414, 0, 0.7310586], [0.5, 0.5, 0]])
DRAWS = 4000


def chi_square(counts: Tensor, share: np.ndarray) -> np.ndarray:
    expected = share * counts.sum(-1, keepdim=True).numpy()
    return (((counts.numpy() - expected) ** 2) / np.where(expected == 0, 1e-9, expected)).sum(-1)


@pytest.mark.parametrize("direction", [0, 1])
def test_frequencies_are_the_softmax(direction: int) -> None:
    # A temperature of 1.2 would give 17 to 33 in two rows, a lost mask millions.
    anchors, labels = SCORES.repeat(DRAWS, 1), torch.arange(3).repeat(DRAWS)
    inputs = [(anchors, labels), (torch.eye(3), torch.arange(3))]
    (image, image_ids), (text, text_ids) = inputs[:: 1 - 2 * direction]
    drawn = sample(image, text, SEED, "multinomial", 1.0, image_ids, text_ids)[direction]
    counts = torch.bincount(3 * labels + drawn, minlength=9).view(3, 3)
    assert (chi_square(counts, LIKELY) < 12).all()  # one degree of freedom: 1 in 2,000


@pytest.mark.parametrize("word", [0, 1])
def test_frequencies_over_seeds(word: int) -> None:
    generator = torch.Generator().manual_seed(3)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for k in range(1000):
        seed = torch.tensor([k, 7] if word == 0 else [7, k])
        drawn = sample(SCORES, torch.eye(3), seed, "multinomial", 1.0)[0]
        counts[torch.arange(3), drawn] += 1
    assert (chi_square(counts, LIKELY) < 12).all()
    sampler = HardNegativeSampler(backend="native")
    first, second = (
        sampler(rows(99, 4), rows(99, 4), generator=generator).text_index for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_rows_and_directions_are_independent() -> None:
    # 2,000 draws each; mod 4 leaves 16 cells and 15 degrees of freedom: 45 is 1 in 10,000.
    text_index, image_index = sample(rows(2000, 1), rows(2000, 1), SEED, "uniform", 1.0)
    for other in (text_index.roll(1), image_index, image_index.roll(1)):
        cells = torch.bincount(4 * (text_index % 4) + other % 4, minlength=16)
        assert chi_square(cells, np.full(16, 1 / 16)) < 45


EVERYTHING = """
from tests.ops.test_native_mining import *
torch.set_num_threads({threads})
x, y, init = (rows(*shape, seed=k, dtype=torch.float32)
              for k, shape in enumerate([(300, 37), (2100, 37), (1, 9, 37)]))
seeded = torch.Generator().manual_seed(0)
member = torch.rand(40, 300, generator=seeded) > 0.1
labels = ids(300, 250, 1), ids(2100, 250, 2)
kernels = torch.ops.itm_native
results = [*ops.ranks(x, y, *labels, backend="native"), kernels.kmeans(y, None, init, 5)[0]]
start = kernels.kmeans_plus_plus(x, member, torch.rand(9, 300, generator=seeded) + 0.1)
results += [start[..., 0], kernels.kmeans(x, member, start, 5)[0]]
for strategy in ("multinomial", "uniform", "hardest"):
    results += sample(x, y, SEED, strategy, 2.0, *labels)
for result in results:
    print(*result.flatten().tolist())
"""


@pytest.mark.any_set
@pytest.mark.parametrize(
    ("capability", "threads"), [on("avx2", 1), on("avx512", 1), on(HIGHEST, 2)]
)
def test_instruction_sets_and_threads_agree(capability: str, threads: int) -> None:
    report, lowest = (
        run_with(*run)
        for run in (
            (capability, EVERYTHING.format(threads=threads)),
            ("default", EVERYTHING.format(threads=1)),
        )
    )
    assert len(report) == 13
    assert report == lowest


def test_hardest_negatives_are_mined_as_hinges_find_them() -> None:
    # Enough rows for screening, where the machine has it; some rows are equal.
    image, text = (rows(300, 300, seed=k, dtype=torch.float32) for k in (0, 1))
    text[7], image[9] = text[3], image[4]
    own, other = ids(300, 290, 3), torch.arange(300)
    for pair in ((other, other), (own, own)):
        draw = HardNegativeSampler("hardest", backend="native")
        found = draw(image, text, image_ids=pair[0], text_ids=pair[1])
        scores = image.double() @ text.double().T
        scores.masked_fill_(pair[0][:, None] == pair[1], -torch.inf)
        assert torch.equal(found.text_index, scores.argmax(1))
        assert torch.equal(found.image_index, scores.argmax(0))
