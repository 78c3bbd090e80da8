"""A training step of a small batch in a CUDA graph: captured once, replayed on other data."""

import pytest
import torch
from torch import Tensor, nn

from itm_kernels import losses
from loss_cases import batch, gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

N, D = 128, 256  # the papers' batch, where a step costs its launches only
# Without clusters and noise: draws differ from replay to replay.
LOSSES = {
    "max_of_hinges": lambda: losses.MaxOfHingesLoss(),
    "semihard": lambda: losses.MaxOfHingesLoss(mining="semihard"),
    "sum_of_hinges": lambda: losses.SumOfHingesLoss(),
    "imc": lambda: losses.IMCLoss(),
    "imc-l1": lambda: losses.IMCLoss(metric="l1"),
    "info_cmr": lambda: losses.InfoCMRLoss(num_clusters=0, num_noise=0),
    "sigmoid": lambda: losses.SigmoidLoss(),
}


def step(loss: nn.Module, sides: list[Tensor]) -> list[Tensor]:
    found = loss(*sides)
    return [found, *gradients(found, *sides)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replay_is_the_eager_step(name: str, dtype: torch.dtype) -> None:
    sides = [side.detach().cuda().to(dtype).requires_grad_() for side in batch(N, D)]
    with torch.device("cuda"):
        loss = LOSSES[name]()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(loss, sides)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, sides)
    with torch.no_grad():
        for side in sides:
            side.copy_(side.roll(1, 0).flip(1))
    sides[1].data[0] *= 2  # other hinges than before
    graph.replay()
    found = [result.clone() for result in captured]
    for ours, eager in zip(found, step(loss, sides), strict=True):
        assert torch.equal(ours, eager)
