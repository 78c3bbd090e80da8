"""Host time of a training step, measured on two pairs, whose arithmetic takes no time.

`python -m benchmarks.host_time` prints, for every loss, the process time of a forward and a
backward pass beside that of eager PyTorch, as medians of interleaved rounds. The difference is time
in Python: checks, options, the choice of a backend, autograd. On a GPU a small batch waits for it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.rivals import eager
from benchmarks.tables import table
from itm_kernels import losses

N, D = 2, 8
CALLS = 20  # per round
Step = Callable[[], None]


class Contest(NamedTuple):
    """A loss as a Module, and its usual formula in eager PyTorch."""

    ours: Callable[..., Tensor]
    eager: Callable[..., Tensor]
    views: bool = False  # inputs are two views of images, texts and fused vectors


def contests() -> dict[str, Contest]:
    """Return every loss that has an eager formula."""
    scaled: dict[str, Any] = {"logit_scale": eager.SCALE}
    return {
        "MaxOfHingesLoss": Contest(losses.MaxOfHingesLoss(), eager.max_of_hinges),
        "SumOfHingesLoss": Contest(losses.SumOfHingesLoss(), eager.sum_of_hinges),
        "IMCLoss": Contest(losses.IMCLoss(), eager.imc),
        "InfoNCELoss": Contest(losses.InfoNCELoss(**scaled), eager.info_nce),
        "SigmoidLoss": Contest(losses.SigmoidLoss(), eager.sigmoid),
        "InfoCMRLoss, plain": Contest(
            losses.InfoCMRLoss(num_clusters=0, num_noise=0), eager.info_cmr
        ),
        "ITOLoss": Contest(losses.ITOLoss(**scaled), eager.ito, views=True),
    }


def step(loss: Callable[..., Tensor], views: bool) -> Step:
    """Return a forward and a backward pass over two pairs."""
    shape = (2, N, D) if views else (N, D)
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(shape, generator=generator) for _ in range(3 if views else 2)]
    leaves = [side.requires_grad_() for side in sides]

    def run() -> None:
        torch.autograd.grad(loss(*leaves), leaves)

    return run


def seconds(run: Step) -> float:
    """Return the process time per call, averaged over a round."""
    start = time.process_time()
    for _ in range(CALLS):
        run()
    return (time.process_time() - start) / CALLS


def compare(contest: Contest, rounds: int) -> tuple[float, float]:
    """Return the medians of both, in microseconds."""
    runs = [step(contest.ours, contest.views), step(contest.eager, contest.views)]
    for run in runs:
        seconds(run)
    found = [[seconds(run) for run in runs] for _ in range(rounds)]
    ours, theirs = (1e6 * statistics.median(each) for each in zip(*found, strict=True))
    return ours, theirs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--only", nargs="+", metavar="LOSS", default=list(contests()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in options.only:
        ours, theirs = compare(contests()[name], options.rounds)
        lines.append([name, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"])
    print(table(["loss", "ours, us", "eager, us", "ours / eager"], lines))


if __name__ == "__main__":
    main()
