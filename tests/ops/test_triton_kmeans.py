"""k-means on tensor cores: rows of any length, of half precision too, and shares of rows."""

from unittest.mock import patch

import pytest
import torch

from itm_kernels import reference
from kernels import MARKS

pytestmark = MARKS["triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_ties_are_decided_as_in_fp32(dtype: torch.dtype) -> None:
    """Rows lie between centroids that bf16 does not tell apart."""
    x = draw(60, 96).to(dtype)
    direction = draw(1, 96, seed=1) * 1e-4
    start = torch.cat([draw(1, 96, seed=2) + step * direction for step in range(8)])
    start = start.float()[None]
    found, _ = torch.ops.itm_triton.kmeans(x, None, start, 0)
    scores, coarse = (
        c.double().square().sum(1) / 2 - x.double() @ c.double().T
        for c in (start[0], start[0].bfloat16())
    )
    best = scores.sort(1).values
    sure = best[:, 1] - best[:, 0] > 5e-5  # fp32 at |x| |c| = 100 is sure of 1e-5
    assert sure.sum() > 30
    assert found[0, sure].equal(scores.argmin(1)[sure])
    assert not found[0, sure].equal(coarse.argmin(1)[sure])


def test_rows_of_any_length() -> None:
    """Every cluster is as exact as if it were alone, whatever the length of others' rows."""
    size, scales, alone = 12, (1e-10, 1.0, 1e10), []
    rows = (draw(3, size, 33) + 20 * draw(1, 33, seed=9)).float()
    x = torch.cat([scale * some for scale, some in zip(scales, rows, strict=True)])
    start = x[::size].clone()[None]
    found = torch.ops.itm_triton.kmeans(x, None, start, 1)
    wanted = reference.kmeans(x.double(), None, start.double(), 1)
    assert found[0].equal(wanted[0])
    for k, scale in enumerate(scales):
        alone.append((found[1][0, k].double() - wanted[1][0, k]).abs().max() / scale)
    assert max(alone) < 5e-6


def test_centroids_that_are_short_beside_their_rows() -> None:
    """Pairs x and e - x have a mean of e / 2: it is exact to the rounding of the sums."""
    rows, rest = draw(16, 40), 2.0**-12 * draw(1, 40, seed=1)
    x = torch.cat([rows, rest - rows]).float()
    init = torch.stack([x.mean(0) + 1e-3, 1e3 + x[0]])[None]
    for steps in (1, 2):
        found = torch.ops.itm_triton.kmeans(x, None, init, steps)
        wanted = reference.kmeans(x.double(), None, init.double(), steps)
        assert found[0].equal(wanted[0])
        torch.testing.assert_close(found[1].double(), wanted[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf
def test_a_bad_row_is_alone_in_every_share(dtype: torch.dtype, bad: float) -> None:
    from itm_kernels.triton import kmeans

    x, init = draw(400, 5).to(dtype), draw(1, 3, 5, seed=1)
    x[300, 2] = bad
    for chain in (128, 1024):  # several shares, or one
        with patch.object(kmeans, "_CHAIN", chain), patch.object(kmeans, "_PROGRAMS", 1):
            assignment, _ = torch.ops.itm_triton.kmeans(x, None, init, 0)
            _, centroids = torch.ops.itm_triton.kmeans(x, None, init, 1)
        lost = int(assignment[0, 300])
        assert centroids[0, lost].isnan().any()
        for k in {0, 1, 2} - {lost}:
            own = assignment[0] == k
            torch.testing.assert_close(centroids[0, k], x[own].float().mean(0))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_shares_of_rows_are_one_mean(dtype: torch.dtype) -> None:
    from itm_kernels.triton import kmeans

    x, init = draw(300, 70).to(dtype), draw(2, 5, 70, seed=1)
    member = draw(2, 300, seed=2) > 0
    found = []
    for chain in (128, 1024):
        with patch.object(kmeans, "_CHAIN", chain), patch.object(kmeans, "_PROGRAMS", 1):
            found.append(torch.ops.itm_triton.kmeans(x, member, init, 2))
            again = torch.ops.itm_triton.kmeans(x, member, init, 2)
        assert all(a.equal(b) for a, b in zip(found[-1], again, strict=True))
    assert found[0][0].equal(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
