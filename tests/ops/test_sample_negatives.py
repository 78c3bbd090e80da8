"""Sampling of negatives on every backend: promised noise, ties, frequencies, precisions."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from interpreted import INTERPRETED
from itm_kernels import reference
from itm_kernels.mining import HardNegativeSampler
from kernels import cases, on
from oracles import noise
from random_tensors import LOW_PRECISIONS, ids, rows, whole

if INTERPRETED:
    import triton
    import triton.language as tl

    from itm_kernels.triton._gumbel import gumbel

    @triton.jit
    def _noise_kernel(words, found, SIZE: tl.constexpr):
        at = tl.arange(0, SIZE)
        tl.store(found + at, gumbel(tl.load(words + at).to(tl.uint32)))


both = on("native", "triton")
STRATEGIES = ("multinomial", "uniform", "hardest")
# One row, one column, one less and one more than a vector, a tile or a block of noise.
SIZES = [(1, 1, 1), (2, 33, 3), (33, 127, 96), (127, 2, 333), (5, 1, 1000)]
SEED = torch.tensor([0x123456789ABCDEF0, 2**63 - 5])


def sample(
    kernels: Any,
    image: Tensor,
    text: Tensor,
    strategy: str,
    temperature: float,
    *labels: Tensor,
    seed: Tensor = SEED,
) -> tuple[Tensor, Tensor]:
    given = labels or (None, None)
    return kernels.sample_negatives(image, text, *given, strategy, temperature, seed)


HIGH = 0xFFFFFFFF
PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]


# kat_vectors of Random123, philox4x32 10.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([HIGH] * 4, [HIGH] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI[:4], PI[4:], "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
@both
def test_published_words_of_philox(
    kernels: Any, counter: list[int], key: list[int], words: str
) -> None:
    """The oracle's generator, which kernels are compared with below, and that of the CPU."""
    wanted = [int(word, 16) for word in words.split()]
    assert noise.philox(counter, key) == wanted
    if kernels.name == "itm_native":
        assert torch.ops.itm_testing.philox(counter, key) == wanted


@cases(
    "N, M, D, dtype",
    native=[(*size, torch.float64) for size in [*SIZES, (130, 2100, 3), (290, 2, 3)]],
    triton=[
        (*size, dtype)
        for size, dtype in product(
            [*SIZES, (3, 300, 3), (130, 2, 3)], (torch.float64, *LOW_PRECISIONS)
        )
    ],
)
@pytest.mark.parametrize(
    ("strategy", "temperature"), [("multinomial", 0.3), ("multinomial", 3.0), ("uniform", 0.1)]
)
def test_draws_are_scores_plus_promised_noise(
    kernels: Any, N: int, M: int, D: int, strategy: str, temperature: float, dtype: torch.dtype
) -> None:
    image, text = (normalize(rows(size, D, seed=size), dim=1).to(dtype) for size in (N, M))
    labels = ids(N, 5, 1), ids(M, 5, 2)
    scores = image.double() @ text.double().T
    logits = scores / temperature if strategy == "multinomial" else 0 * scores
    same = labels[0][:, None] == labels[1]
    promised = torch.tensor(noise.gumbel_of_pairs(tuple(SEED.tolist()), N, M))
    drawn = (logits + promised).masked_fill(same, -torch.inf)
    # Triton's noise, up to 23, and logits are fp32: a negative as near to the best may be drawn.
    within = 4 * torch.finfo(torch.float32).eps * (23 + logits.abs().max())
    within *= kernels.name == "itm_triton"
    found = sample(kernels, image, text, strategy, temperature, *labels)
    for index, of_pairs, dim in zip(found, drawn, (1, 0), strict=True):
        assert torch.equal(index < 0, same.all(dim))
        best = of_pairs.amax(dim)
        won = of_pairs.gather(dim, index.clamp_min(0).unsqueeze(dim)).squeeze(dim)
        assert ((best - won <= within) | (index < 0)).all()


@pytest.mark.parametrize("seed", [[0, 0], [-1, -(2**63)], [2**32, 2**32 - 1]], ids=str)
@both
def test_every_bit_of_the_seed_counts(kernels: Any, seed: list[int]) -> None:
    x, y = rows(70, 1), rows(99, 1)
    found = sample(kernels, x, y, "uniform", 1.0, seed=torch.tensor(seed))
    drawn = noise.gumbel_of_pairs(tuple(word % 2**64 for word in seed), 70, 99)
    for of_pairs in drawn:
        np.fill_diagonal(of_pairs, -np.inf)
    assert found[0].tolist() == drawn[0].argmax(1).tolist()
    assert found[1].tolist() == drawn[1].argmax(0).tolist()


@both
def test_noise_is_precise_in_both_tails(kernels: Any) -> None:
    at = torch.arange(4096)
    edges = [at, 2**30 - 2048 + at, 2**31 - 2048 + at, 2**32 - 1 - at]
    edges += [2**20 * at, 858993 * at, 1 << (at % 32)]
    if kernels.name == "itm_native":
        edges.append(ids(100000, 2**32, 0))
    for words in edges:
        if kernels.name == "itm_native":
            found = torch.ops.itm_testing.gumbel(words).double()
        else:
            found = torch.empty(4096)
            _noise_kernel[(1,)](words, found, SIZE=4096)
        exact = torch.tensor(noise.gumbel(words.numpy()))
        assert ((found - exact).abs() <= 5e-7 * exact.abs().clamp_min(1)).all()


@cases("N, M, D", native=[*SIZES, (300, 2100, 3)], triton=[*SIZES, (130, 70, 3)])
def test_hardest_is_the_largest_score(kernels: Any, N: int, M: int, D: int) -> None:
    labels = ids(N, 5, 1), ids(M, 5, 2)
    for dtype in (torch.float64, *LOW_PRECISIONS):
        image, text = whole(N, D, dtype=dtype), whole(M, D, seed=1, dtype=dtype)
        text[M // 2, 0] = torch.nan
        wanted = reference.sample_negatives(image, text, *labels, "hardest", 0.07, None)
        found = sample(kernels, image, text, "hardest", 0.07, *labels)
        assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("strategy", STRATEGIES)
@both
def test_strides_do_not_matter_and_draws_repeat(kernels: Any, strategy: str) -> None:
    wide = rows(70, 2 * 40)
    image, text = wide[:, ::2], rows(40, 70, seed=1).T
    found = sample(kernels, image, text, strategy, 0.1)
    for sides in ((image, text), (image.contiguous(), text.contiguous())):
        assert all(map(torch.equal, found, sample(kernels, *sides, strategy, 0.1)))
    pair = torch.stack([SEED, SEED], 1)[:, 0]  # a seed need not be contiguous
    assert all(map(torch.equal, found, sample(kernels, image, text, strategy, 0.1, seed=pair)))


@both
def test_no_negative_is_no_draw_and_nan_is_drawn(kernels: Any) -> None:
    image, text, one = rows(5, 3), rows(5, 3, seed=1), torch.ones(5, dtype=torch.int64)
    for strategy in STRATEGIES:
        alone = sample(kernels, image[:1], text[:1], strategy, 0.1)
        of_one = sample(kernels, image, text, strategy, 0.1, one, one)
        assert all((index == -1).all() for index in (*alone, *of_one))
    text[3, 1] = torch.nan
    found = sample(kernels, image, text, "multinomial", 0.1)
    assert found[0].tolist()[:3] == [3, 3, 3]
    assert found[1][3] == 0  # of several, the first
    # "uniform" does not read the rows.
    found = sample(kernels, image, text, "uniform", 0.1)
    assert all(map(torch.equal, found, sample(kernels, text, image, "uniform", 0.1)))


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
@both
def test_no_temperature_leaves_the_range_of_fp32(kernels: Any, temperature: float) -> None:
    image, text = rows(40, 3, dtype=torch.float32), rows(40, 3, seed=1, dtype=torch.float32)
    limit = sample(kernels, image, text, "hardest" if temperature < 1 else "uniform", 1.0)
    found = sample(kernels, image, text, "multinomial", temperature)
    assert all(map(torch.equal, found, limit))


@pytest.mark.parametrize("strategy", ["multinomial", "uniform"])
@on("triton")
def test_triton_draws_what_the_cpu_draws(kernels: Any, strategy: str) -> None:
    image, text, labels = rows(130, 7), rows(201, 7, seed=1), (ids(130, 9, 1), ids(201, 9, 2))
    native = sample(torch.ops.itm_native, image, text, strategy, 0.5, *labels)
    assert all(map(torch.equal, native, sample(kernels, image, text, strategy, 0.5, *labels)))


# -- frequencies -----------------------------------------------------------------------------------

SCORES = torch.tensor([[2.0, 1, 0], [0, 3, 1], [1, 1, 1]])  # as in test_hand_checks.py
LIKELY = np.array([[0, 0.7310586, 0.2689414], [0.2689414, 0, 0.7310586], [0.5, 0.5, 0]])
DRAWS = 4000


def chi_square(counts: Tensor, likely: np.ndarray) -> np.ndarray:
    expected = likely * counts.sum(-1, keepdim=True).numpy()
    return (((counts.numpy() - expected) ** 2) / np.where(expected == 0, 1e-9, expected)).sum(-1)


@pytest.mark.parametrize("direction", [0, 1])
@on("native")
def test_frequencies_are_the_softmax(kernels: Any, direction: int) -> None:
    # A temperature of 1.2 would give 17 to 33 in two rows, a lost mask millions.
    anchors, labels = SCORES.repeat(DRAWS, 1), torch.arange(3).repeat(DRAWS)
    inputs = [(anchors, labels), (torch.eye(3), torch.arange(3))]
    (image, image_ids), (text, text_ids) = inputs[:: 1 - 2 * direction]
    drawn = sample(kernels, image, text, "multinomial", 1.0, image_ids, text_ids)[direction]
    counts = torch.bincount(3 * labels + drawn, minlength=9).view(3, 3)
    assert (chi_square(counts, LIKELY) < 12).all()  # one degree of freedom: 1 in 2,000


@pytest.mark.parametrize("word", [0, 1])
@on("native")
def test_frequencies_over_seeds(kernels: Any, word: int) -> None:
    generator = torch.Generator().manual_seed(3)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for k in range(1000):
        seed = torch.tensor([k, 7] if word == 0 else [7, k])
        drawn = sample(kernels, SCORES, torch.eye(3), "multinomial", 1.0, seed=seed)[0]
        counts[torch.arange(3), drawn] += 1
    assert (chi_square(counts, LIKELY) < 12).all()
    sampler = HardNegativeSampler(backend="native")
    first, second = (
        sampler(rows(99, 4), rows(99, 4), generator=generator).text_index for _ in range(2)
    )
    assert not torch.equal(first, second)


@on("native")
def test_rows_and_directions_are_independent(kernels: Any) -> None:
    # 2,000 draws each; mod 4 leaves 16 cells and 15 degrees of freedom: 45 is 1 in 10,000.
    text_index, image_index = sample(kernels, rows(2000, 1), rows(2000, 1), "uniform", 1.0)
    for other in (text_index.roll(1), image_index, image_index.roll(1)):
        cells = torch.bincount(4 * (text_index % 4) + other % 4, minlength=16)
        assert chi_square(cells, np.full(16, 1 / 16)) < 45


@on("native")
def test_hardest_negatives_are_those_of_hinges(kernels: Any) -> None:
    # Enough rows for bf16 screening, where the CPU has it; some rows are equal.
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
