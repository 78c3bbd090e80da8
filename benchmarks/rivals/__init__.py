"""Alternatives to this package: plain PyTorch formulas and other packages.

A rival is a builder that returns a function of the row's tensors, or raises `UnavailableError`.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

Function = Callable[..., Any]
Builder = Callable[[], Function]

PACKAGES = {
    "pytorch_metric_learning": "pytorch-metric-learning",
    "open_clip": "open-clip-torch",
    "keops": "pykeops",
    "scikit-learn": "scikit-learn",
    "faiss": "faiss-cpu",
    "late_interaction_kernels": "late-interaction-kernels",
    # Triton kernels for CUDA only: `pip install --no-deps` beside a CUDA build of torch.
    "inf_cl": "inf-cl",
    "memeff": "memeff",
    "siglip_kernel": "siglip-kernel",
}


class UnavailableError(RuntimeError):
    """Raised by a rival that cannot run a row here. The report shows the message."""


def versions() -> dict[str, str]:
    """Return the version of every compared package, empty if it is not installed."""
    found = {}
    for distribution in ("torch", "numpy", "pytest-benchmark", *PACKAGES.values()):
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = ""
    return found


def plain(function: Function) -> Builder:
    """Return the builder of a formula that needs no building."""
    return lambda: function


def compiled(function: Function, backend: str = "inductor") -> Builder:
    """Return the builder of a formula under torch.compile, specialised to the row's sizes."""

    def build() -> Function:
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)

    return build
