"""The one place that chooses a backend.

A backend is an operator namespace, a device is a dispatch key. What each backend holds is known
when the package is imported (a build's list, a folder's files), so choosing is a table look-up
that `torch.compile` can trace.
"""

import os
import pkgutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

NOT_BUILT = ""  # why the compiled extension is not there
try:
    from itm_kernels import _C  # type: ignore[attr-defined]
except ImportError as error:
    _C = None
    missing = find_spec("itm_kernels._C") is None
    NOT_BUILT = "the extension is not built" if missing else f"the extension fails to load: {error}"

OPERATORS = (
    "similarity",
    "hardest_negatives",
    "max_of_hinges",
    "sum_of_hinges",
    "intra_modal",
    "log_sum_exp",
    "sigmoid",
    "rbf_synthesis",
    "rbf_synthesis_logits",
    "kmeans",
    "sample_negatives",
    "ranks",
    "unit_rows",
)
NAMESPACES = {"native": "itm_native", "triton": "itm_triton"}
CHOICES = ("auto", "reference", *NAMESPACES)
PREFERENCE = {"cpu": ("native", "triton"), "cuda": ("triton", "native")}  # then reference
DEVICES = tuple(PREFERENCE)
# Pairs N x M from which "auto" takes a kernel. Below, plain PyTorch is as fast or faster: all is in
# the caches, and what these operators need several calls for it has in one. Measured at D = 1024 in
# fp32 on 2 cores, whole losses: 0.7 to 0.9 of its speed at 128 x 128, 1.05 to 1.15 at 1024 x 1024.
LEAST_PAIRS = {
    ("native", operator): 1 << 20 for operator in ("sum_of_hinges", "log_sum_exp", "sigmoid")
}

_TRITON_FOLDER = str(Path(__file__).parent / "triton")
# device -> operators a backend has kernels for
NATIVE_KERNELS: dict[str, frozenset[str]] = {
    device: frozenset(_C.build_info()["operators"][device] if _C else ()) for device in DEVICES
}
TRITON_FILES = frozenset(module.name for module in pkgutil.iter_modules([_TRITON_FOLDER]))
_STEM = {"rbf_synthesis_logits": "rbf_synthesis"}  # operators that share a file with another
HAS_TRITON = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # Triton's own switch


class Availability(NamedTuple):
    """What "auto" picks for one operator on one device, and why not the others."""

    operator: str
    device: str
    auto: str
    least_pairs: int  # from which on; fewer run on the reference
    reasons: dict[str, str]  # backend -> why it is not there; empty for those that are


def triton_file(operator: str) -> str | None:
    """Return the name of the file that holds an operator's Triton kernels, None without any."""
    stem = _STEM.get(operator, operator)
    return stem if stem in TRITON_FILES else None


def why_not(operator: str, device: str, backend: str) -> str | None:
    """Return why a backend cannot run an operator on a device type, None if it can."""
    if backend == "reference":
        return None
    if backend == "native":
        if NOT_BUILT:
            return NOT_BUILT
        has_kernel = operator in NATIVE_KERNELS.get(device, ())
    else:
        if not HAS_TRITON:
            return "triton is not installed"
        if device == "cpu" and not INTERPRETED:
            return "Triton runs on the CPU only under TRITON_INTERPRET=1"
        has_kernel = triton_file(operator) is not None
    return None if has_kernel else f"no {backend} kernel for {operator} on {device}"


def choose(operator: str, device: str, pairs: int = sys.maxsize) -> str:
    """Return the backend that "auto" picks for an operator over so many pairs of rows."""
    for backend in PREFERENCE.get(device, ()):
        enough = pairs >= LEAST_PAIRS.get((backend, operator), 0)
        if enough and why_not(operator, device, backend) is None:
            return backend
    return "reference"


def resolve(
    function: str, operator: str, like: Tensor, backend: str, pairs: int = sys.maxsize
) -> str | None:
    """Choose the operator namespace for a tensor's device; None means the reference.

    Args:
        function: the public function, for messages.
        operator: what is to run.
        like: a tensor on the device.
        backend: "auto" or the name that the caller asked for.
        pairs: rows times rows that the operator compares.

    Raises:
        ValueError: the backend's name is unknown.
        RuntimeError: the backend was asked for by name and cannot run here.
    """
    device = like.device.type
    if backend == "auto":
        backend = choose(operator, device, pairs)
    if backend == "reference":
        return None
    if backend not in NAMESPACES:
        words = ", ".join(repr(choice) for choice in CHOICES)
        raise ValueError(f"{function}: backend must be one of {words}, got {backend!r}")
    if why_not(operator, device, backend) is None:
        return NAMESPACES[backend]
    reasons = "; ".join(
        f"{name}: {why_not(operator, device, name) or 'available'}"
        for name in (*NAMESPACES, "reference")
    )
    raise RuntimeError(
        f"{function}: backend {backend!r} cannot run {operator} on {device} ({reasons})"
    )


def available() -> list[Availability]:
    """Return, for each operator and device type, what "auto" picks and why not the others."""
    table = []
    for operator in OPERATORS:
        for device in DEVICES:
            auto = choose(operator, device)
            reasons = {name: why_not(operator, device, name) for name in PREFERENCE[device]}
            table.append(
                Availability(
                    operator,
                    device,
                    auto,
                    LEAST_PAIRS.get((auto, operator), 0),
                    {name: reason for name, reason in reasons.items() if reason is not None},
                )
            )
    return table


def build_info() -> dict[str, object]:
    """Return what the extension was built with; empty without it."""
    return dict(_C.build_info()) if _C else {}


def versions() -> dict[str, str]:
    """Return the versions that decide what runs; empty strings for what is not there."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    return {
        "torch": torch.__version__,
        "triton": installed("triton"),
        "cuda": torch.version.cuda or "",
    }
