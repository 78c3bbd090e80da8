"""A validation loss that depends on the embeddings alone."""

import pytest
import torch

from itm_kernels import functional, losses
from loss_cases import batch


@pytest.mark.parametrize("clustering", ["shared", "per_anchor"])
def test_nothing_is_drawn_in_eval(clustering: str, backend: str) -> None:
    image, text = (t.detach() for t in batch(9, 5))
    options = {"num_clusters": 3, "sigma": 0.5, "clustering": clustering, "backend": backend}
    criterion = losses.InfoCMRLoss(draws_in_eval=False, **options)
    criterion.eval()
    before = torch.get_rng_state()
    first, second = criterion(image, text), criterion(image, text)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    # Noise and drawn starts are what it lacks, not synthetic negatives.
    without = functional.info_cmr_loss(image, text, num_clusters=0, num_noise=0, backend=backend)
    assert first > without
    reference = losses.InfoCMRLoss(draws_in_eval=False, **{**options, "backend": "reference"})
    torch.testing.assert_close(first, reference.eval()(image, text))
    criterion.train()
    assert not torch.equal(criterion(image, text), criterion(image, text))


def test_without_synthesis_only_the_noise_is_left_out() -> None:
    image, text = (t.detach() for t in batch(9, 5))
    criterion = losses.InfoCMRLoss(num_clusters=0, draws_in_eval=False).eval()
    expected = functional.info_cmr_loss(image, text, num_clusters=0, num_noise=0)
    assert torch.equal(criterion(image, text), expected)


def test_by_default_eval_draws_as_training_does() -> None:
    image, text = (t.detach() for t in batch(9, 5))
    results = []
    for criterion in (losses.InfoCMRLoss(), losses.InfoCMRLoss().eval()):
        torch.manual_seed(0)
        results.append(criterion(image, text))
    assert torch.equal(*results)
    assert "draws_in_eval=True" in repr(losses.InfoCMRLoss())


def test_a_start_without_draws_takes_rows_far_apart() -> None:
    """The first row, the row farthest from it, and then the row farthest from both."""
    from itm_kernels.ops._kmeans_plus_plus import fused_kmeans_plus_plus

    x = torch.tensor([[0.0], [1.0], [10.0], [4.0], [-1.0]])
    for backend in ("reference", "auto"):
        start = fused_kmeans_plus_plus(x, None, 3, None, backend, False)
        assert start[0, :, 0].tolist() == [0.0, 10.0, 4.0]


def test_it_compiles() -> None:
    image, text = (t.detach() for t in batch(6, 8, torch.float32))
    criterion = losses.InfoCMRLoss(num_clusters=2, draws_in_eval=False).eval()
    torch._dynamo.reset()
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, text), criterion(image, text))
