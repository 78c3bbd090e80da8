"""One optimiser step in a wrapper of torch.distributed equals one process's on the whole batch."""

import pytest
import torch

from ranks import Ranks
from trained_models import LOSSES, Step, in_one_process, on_rank


def check(ranks: Ranks, step: Step) -> None:
    expected = in_one_process(step)
    for found in ranks.run(on_rank, step):
        assert found.keys() == expected.keys()
        for name, parameter in expected.items():
            torch.testing.assert_close(
                found[name], parameter, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("rows", [(3, 3), (4, 1), (0, 5)])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES)
def test_distributed_data_parallel(
    two: Ranks, loss: str, reduction: str, rows: tuple[int, int]
) -> None:
    """A learnable scale and bias are averaged with the encoders, since the model holds the loss."""
    check(two, Step(loss, "ddp", (rows,), reduction))


@pytest.mark.parametrize("loss", LOSSES)
def test_distributed_data_parallel_with_the_ring(two: Ranks, loss: str) -> None:
    check(two, Step(loss, "ddp", ((4, 2),), exchange="ring"))


@pytest.mark.parametrize("rows", [(4, 2), (0, 5)])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES)
def test_fully_shard(two: Ranks, loss: str, reduction: str, rows: tuple[int, int]) -> None:
    """Encoders are sharded; a criterion with parameters is in DistributedDataParallel."""
    check(two, Step(loss, "fsdp", (rows,), reduction))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_accumulation(two: Ranks, loss: str, wrapper: str) -> None:
    """Gradients of two batches add up as in one process; ranks exchange them once."""
    check(two, Step(loss, wrapper, ((3, 2), (1, 4))))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", LOSSES)
def test_sum_of_gradients(two: Ranks, loss: str, reduction: str) -> None:
    """A trainer that adds gradients wants the derivative itself."""
    check(two, Step(loss, "all-reduce", ((4, 2),), reduction, gradients="sum"))
