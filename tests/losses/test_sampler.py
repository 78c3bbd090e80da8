"""The sampler with a learnt temperature, and with one score matrix per direction, as in ALBEF."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itm_kernels.losses import ITMLoss
from itm_kernels.mining import HardNegatives, HardNegativeSampler

N, M, D = 12, 15, 6
IDS = torch.arange(N), torch.cat([torch.arange(N), torch.tensor([0, 0, 3])])


def embeddings(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N + M, D, generator=generator, dtype=torch.float64).to(dtype)
    return rows[:N], rows[N:]


def draw(sampler: Any, *inputs: Tensor, seed: int = 0, **options: Any) -> HardNegatives:
    generator = torch.Generator().manual_seed(seed)
    return sampler(*inputs, image_ids=IDS[0], text_ids=IDS[1], generator=generator, **options)


def same(a: HardNegatives, b: HardNegatives) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- temperature -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_a_tensor_and_a_number_draw_the_same(
    shape: tuple[int, ...], dtype: torch.dtype, temperature: float, backend: str
) -> None:
    learnt = torch.full(shape, temperature, dtype=dtype, requires_grad=True)
    number = HardNegativeSampler(temperature=float(learnt.detach()), backend=backend)
    tensor = HardNegativeSampler(temperature=learnt, backend=backend)
    for seed in range(5):
        expected = draw(number, *embeddings(), seed=seed)
        found = draw(tensor, *embeddings(), seed=seed)
        assert same(found, expected)
        given = draw(
            HardNegativeSampler(backend=backend), *embeddings(), seed=seed, temperature=learnt
        )
        assert same(given, expected)
        assert not found.text_index.requires_grad


def test_a_tensor_is_read_when_it_is_used() -> None:
    temperature = torch.tensor(1e3, dtype=torch.float64)
    sampler = HardNegativeSampler(temperature=temperature)
    flat = draw(sampler, *embeddings())
    temperature.fill_(1e-3)
    sharp = draw(sampler, *embeddings())
    assert not same(flat, sharp)
    assert same(sharp, draw(HardNegativeSampler("hardest"), *embeddings()))


@pytest.mark.parametrize("strategy", ["hardest", "uniform"])
def test_strategies_without_a_temperature_ignore_it(strategy: str, backend: str) -> None:
    plain = HardNegativeSampler(strategy, backend=backend)  # type: ignore[arg-type]
    expected = draw(plain, *embeddings(torch.bfloat16))
    for value in (0.5, torch.nan):
        found = draw(plain, *embeddings(torch.bfloat16), temperature=torch.tensor(value))
        assert same(found, expected)


def test_half_precision_is_divided_in_fp32() -> None:
    temperature = torch.tensor(0.07, dtype=torch.float32)
    half = draw(HardNegativeSampler(temperature=temperature), *embeddings(torch.bfloat16))
    wide = [t.float() for t in embeddings(torch.bfloat16)]
    assert same(half, draw(HardNegativeSampler(temperature=temperature), *wide))


def test_a_tensor_needs_no_synchronisation_and_compiles() -> None:
    image, text = (t.float().to("meta") for t in embeddings())
    temperature = torch.tensor(0.07, device="meta")
    found = HardNegativeSampler(temperature=temperature)(image, text[:N])
    assert found.text_index.is_meta

    sampler = HardNegativeSampler("multinomial")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y, t: sampler(x, y, temperature=t), fullgraph=True, backend="aot_eager"
    )
    image, text = embeddings()
    temperature = torch.tensor(1e-6, dtype=torch.float64)
    hardest = HardNegativeSampler("hardest")(image, text[:N])
    assert same(HardNegatives(*compiled(image, text[:N], temperature)), hardest)


def test_a_sampler_with_a_tensor_is_shown_copied_and_pickled() -> None:
    sampler = HardNegativeSampler(temperature=torch.nn.Parameter(torch.tensor(0.07)))
    assert "temperature=float32 [] on cpu" in repr(sampler)
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert same(draw(twin, *embeddings()), draw(sampler, *embeddings()))
    sampler.temperature = np.float32(0.5)  # type: ignore[assignment]
    assert sampler.temperature == 0.5


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (torch.ones(2), ValueError, "a number or a floating-point tensor of one element"),
        (torch.tensor(1), ValueError, "a number or a floating-point tensor of one element"),
        (0.0, ValueError, "finite and > 0, got 0.0"),
        ("0.1", TypeError, "a number, got str '0.1'"),
    ],
)
def test_temperatures_are_checked(temperature: Any, error: type, message: str) -> None:
    for call in (
        lambda: HardNegativeSampler(temperature=temperature),
        lambda: draw(HardNegativeSampler(), *embeddings(), temperature=temperature),
        lambda: HardNegativeSampler().from_scores(torch.eye(3), temperature=temperature),
    ):
        with pytest.raises(error, match=f"temperature must be {message}"):
            call()


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["multinomial", "hardest", "uniform"])
def test_scores_and_their_embeddings_draw_the_same(strategy: str) -> None:
    image, text = embeddings()
    sampler = HardNegativeSampler(strategy, backend="reference")  # type: ignore[arg-type]
    expected = draw(sampler, image, text)
    scores = image @ text.T
    assert same(draw(sampler.from_scores, scores), expected)
    assert same(draw(sampler.from_scores, scores, scores.T), expected)


def test_every_direction_has_scores_of_its_own() -> None:
    image, text = embeddings()
    sampler = HardNegativeSampler("hardest")
    first, second = image @ text.T, -image @ text.T
    found = draw(sampler.from_scores, first, second.T.contiguous())
    assert torch.equal(found.text_index, draw(sampler.from_scores, first).text_index)
    assert torch.equal(found.image_index, draw(sampler.from_scores, second).image_index)


def test_pairs_of_one_id_are_never_drawn_from_scores() -> None:
    image, text = embeddings()
    scores = image @ text.T
    for seed in range(20):
        found = draw(HardNegativeSampler().from_scores, scores, 2 * scores.T, seed=seed)
        assert (IDS[1][found.text_index] != IDS[0]).all()
        assert (IDS[0][found.image_index] != IDS[1]).all()


def test_draws_follow_the_softmax_of_each_direction() -> None:
    """ALBEF's own lines: softmax, the diagonal to 0, torch.multinomial."""
    image_to_text = torch.tensor([[9.0, 1.0, 0.0], [0.0, 9.0, 0.0], [1.0, 0.0, 9.0]])
    text_to_image = torch.tensor([[9.0, 0.0, 2.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    sampler = HardNegativeSampler(temperature=torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    draws = 2000
    counts = torch.zeros(2, 3, 3)
    for _ in range(draws):
        found = sampler.from_scores(image_to_text, text_to_image, generator=generator)
        for direction, index in enumerate(found):
            counts[direction, torch.arange(3), index] += 1
    for found_counts, scores in zip(counts, (image_to_text, text_to_image), strict=True):
        weights = scores.softmax(1).fill_diagonal_(0)
        expected = weights / weights.sum(1, keepdim=True)
        # Three standard deviations of a frequency of one half are 0.034.
        torch.testing.assert_close(found_counts / draws, expected, rtol=0, atol=0.034)


def test_scores_of_different_precision_and_no_gradient() -> None:
    image, text = embeddings()
    scores = (image @ text.T).float().requires_grad_()
    found = draw(HardNegativeSampler("hardest").from_scores, scores, scores.T.bfloat16())
    expected = draw(HardNegativeSampler("hardest"), image, text)
    assert torch.equal(found.text_index, expected.text_index)
    assert not found.image_index.requires_grad


@pytest.mark.parametrize(
    ("scores", "options", "error", "message"),
    [
        (
            (torch.ones(3, 4),),
            {},
            ValueError,
            r"image_to_text \[3, 4\] is not square; pass image_id",
        ),
        ((torch.ones(3),), {}, ValueError, r"image_to_text must have shape \[N, M\], got \[3\]"),
        (
            (torch.eye(3), torch.ones(3, 4)),
            {},
            ValueError,
            r"text_to_image must be \[3, 3\] on cpu, one row per text, got float32 \[3, 4\] on cpu",
        ),
        (
            (torch.eye(3), torch.eye(3, device="meta")),
            {},
            ValueError,
            r"text_to_image must be \[3, 3\] on cpu, .* got float32 \[3, 3\] on meta",
        ),
        ((torch.eye(3).long(),), {}, TypeError, "image_to_text must be floating point"),
        (
            (torch.eye(3),),
            {"image_ids": IDS[0]},
            ValueError,
            "image_ids is given without text_ids",
        ),
    ],
)
def test_scores_are_checked(
    scores: tuple[Tensor, ...], options: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=f"^HardNegativeSampler.from_scores: {message}"):
        HardNegativeSampler().from_scores(*scores, **options)


# -- in the loss -----------------------------------------------------------------------------------


def test_the_loss_takes_negatives_that_are_drawn_already() -> None:
    image, text = embeddings()
    rows = (image, text[:N].clone().requires_grad_())

    def match(i: Tensor, t: Tensor) -> Tensor:
        return (rows[0][i] * rows[1][t]).sum(1)

    sampler = HardNegativeSampler("hardest")
    expected = ITMLoss(sampler=sampler)(*rows, match)
    scores = rows[0] @ rows[1].T
    found = ITMLoss()(*rows, match, negatives=sampler.from_scores(scores, scores.T))
    assert torch.equal(found, expected)
    other = ITMLoss()(*rows, match, negatives=sampler.from_scores(-scores))
    assert not torch.equal(other, expected)
    assert torch.autograd.grad(found, rows[1])[0].isfinite().all()


def test_the_loss_learns_with_a_tensor_in_its_sampler() -> None:
    image, text = embeddings()
    temperature = torch.nn.Parameter(torch.tensor(0.07))
    loss = ITMLoss(sampler=HardNegativeSampler(temperature=temperature))
    value = loss(image, text[:N], lambda i, t: (image[i] * text[t]).sum(1))
    assert value.isfinite()


@pytest.mark.parametrize(
    ("negatives", "error", "message"),
    [
        ((IDS[0], IDS[0]), TypeError, "negatives must be a mining.HardNegatives, got tuple of 2"),
        (
            HardNegatives(IDS[0], IDS[0][:3]),
            ValueError,
            r"negatives.image_index must have shape \[12\], one index per row, got \[3\]",
        ),
        (
            HardNegatives(IDS[0].float(), IDS[0]),
            TypeError,
            "negatives.text_index must be integers, got float32",
        ),
    ],
)
def test_negatives_are_checked(negatives: Any, error: type, message: str) -> None:
    image, text = embeddings()
    with pytest.raises(error, match=f"^ITMLoss: {message}"):
        ITMLoss()(image, text[:N], lambda i, t: image[i, 0], negatives=negatives)
