"""Peak memory of a rank: what a loss and its backward pass add to a process that is warm."""

import re
from pathlib import Path
from typing import Any

import torch

from itm_kernels import losses

LOSSES = {
    "max_of_hinges": losses.MaxOfHingesLoss,
    "sum_of_hinges": losses.SumOfHingesLoss,
    "info_nce": losses.InfoNCELoss,
    "sigmoid": losses.SigmoidLoss,
}


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def peak(group: Any, name: str, rows: int, D: int) -> int:
    """Return the bytes that a step adds at its peak, gradients of the rows included."""
    generator = torch.Generator().manual_seed(group.rank())
    image, text = (
        torch.nn.functional.normalize(torch.randn(rows, D, generator=generator)).requires_grad_()
        for _ in range(2)
    )
    criterion = LOSSES[name](group=group, exchange="ring")
    criterion(image[:64], text[:64]).backward()  # threads and libraries are loaded
    image.grad = text.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    criterion(image, text).backward()
    return _resident("VmHWM") - before
