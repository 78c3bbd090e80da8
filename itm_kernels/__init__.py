"""Fused kernels for the losses that train image-text matching models."""

from itm_kernels import (
    backends,
    compat,
    distributed,
    functional,
    fusion,
    losses,
    mining,
    ops,
    reference,
    retrieval,
    synthesis,
)
from itm_kernels._chunked import chunked
from itm_kernels._diagnostics import diagnostics
from itm_kernels._version import __version__

__all__ = [
    "__version__",
    "backends",
    "chunked",
    "compat",
    "diagnostics",
    "distributed",
    "functional",
    "fusion",
    "losses",
    "mining",
    "ops",
    "reference",
    "retrieval",
    "synthesis",
]
