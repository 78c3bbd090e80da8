"""The one place that chooses a backend.

A backend is an operator namespace, a device is a dispatch key. What each backend holds is known
when the package is imported (a build's list, a folder's files), so choosing is a table look-up
that `torch.compile` can trace.

Some Triton operators have second kernels in Gluon, for sm_90: `triton.gluon.is_selected` chooses
those, from operands that are known when a kernel is launched.
"""

import os
import pkgutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import torch
from torch import Tensor

from itm_kernels import _checks, _devices, _extension
from itm_kernels._extension import MissingKernelsWarning as MissingKernelsWarning
from itm_kernels._extension import versions as versions
from itm_kernels._options import Backend as Backend  # for callers that pass one on

if TYPE_CHECKING:
    from itm_kernels._availability import Availability

# NOT_BUILT says why the compiled extension is not there.
_C, NOT_BUILT, _extension_told = _extension.load()

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
    "kmeans_plus_plus",
    "sample_negatives",
    "ranks",
    "unit_rows",
    "cross_entropy",
)
# Whole losses, from embeddings to the reduced number: taken in place of operators of the table.
TOTALS = (
    "imc_total",
    "info_cmr_total",
    "info_nce_total",
    "max_of_hinges_total",
    "sigmoid_total",
)
NAMESPACES = {"native": "itm_native", "triton": "itm_triton"}
CHOICES = get_args(Backend)  # "auto", "reference" and the namespaces
PREFERENCE = {"cpu": ("native", "triton"), "cuda": ("triton", "native")}  # then reference
DEVICES = tuple(PREFERENCE)
MANY = sys.maxsize
Sides = tuple[int, int]
LARGE = (MANY, MANY)  # rows of two sides that are not known


class Range(NamedTuple):
    """Where a kernel runs and where "auto" takes it, by the rows of the two sides it compares."""

    reason: str
    first_rows: int = 0  # of the larger side, up to which "auto" takes it before PREFERENCE
    most_rows: int = MANY  # of the larger side, up to which it runs


# Counted, not measured (benchmarks/results/predicted/small-batch.md): a step in a CUDA graph, which
# has no Python between launches, against Triton's. 32 x 32 pairs at a time wait for shared memory:
# a product at D = 1024 gets 26 of fp32's 67 TFLOP/s, and takes 2 us at 128 rows, 5 at 256, 20 at
# 512, where tensor cores take 4 (9 for fp32 rows). Triton's 5 to 19 launches take 1.1 to 6 times as
# long at 128 rows, .7 to 3 times at 256, .4 to 1.3 times at 512, the most for fp32 rows.
_MAXIMA_ON_CUDA = Range("three launches, no Python between them", first_rows=256, most_rows=1024)
_SUMS_ON_CUDA = Range("four launches, no Python between them", first_rows=256, most_rows=1024)
_WHOLE_ON_CUDA = Range("a loss in three launches, reduced", first_rows=256, most_rows=1024)
_BOUNDS_ON_CUDA = Range("five or six launches, no Python between them", first_rows=256)
_SYNTHESIS_ON_CUDA = Range("a block an anchor, five launches", first_rows=256)
# All of a problem's rows pass through one block: one large problem would leave the others idle.
_CLUSTERS_ON_CUDA = Range("a block a problem, up to 3 launches", first_rows=256, most_rows=1024)
_START_ON_CUDA = Range("a block a problem, two launches", first_rows=512, most_rows=1024)
_INFO_CMR_ON_CUDA = Range("seven launches in all", first_rows=256, most_rows=1024)
_L1_ON_CUDA = Range("l1 has no form in products", first_rows=MANY)
# (device, backend, operator, metric); "" for all metrics, or none. What is not here runs anywhere.
RANGES: dict[tuple[str, str, str, str], Range] = {
    ("cuda", "native", "max_of_hinges", ""): _MAXIMA_ON_CUDA,
    ("cuda", "native", "max_of_hinges_total", ""): _WHOLE_ON_CUDA,
    ("cuda", "native", "imc_total", ""): _WHOLE_ON_CUDA,
    ("cuda", "native", "info_nce_total", ""): _WHOLE_ON_CUDA,
    ("cuda", "native", "sigmoid_total", ""): _WHOLE_ON_CUDA,
    ("cuda", "native", "hardest_negatives", ""): _MAXIMA_ON_CUDA,
    ("cuda", "native", "sum_of_hinges", ""): _SUMS_ON_CUDA,
    ("cuda", "native", "log_sum_exp", ""): _SUMS_ON_CUDA,
    ("cuda", "native", "sigmoid", ""): _SUMS_ON_CUDA,
    ("cuda", "native", "kmeans", ""): _CLUSTERS_ON_CUDA,
    ("cuda", "native", "kmeans_plus_plus", ""): _START_ON_CUDA,
    ("cuda", "native", "rbf_synthesis", ""): _SYNTHESIS_ON_CUDA,
    ("cuda", "native", "rbf_synthesis_logits", ""): _SYNTHESIS_ON_CUDA,
    ("cuda", "native", "intra_modal", ""): _BOUNDS_ON_CUDA,
    ("cuda", "native", "info_cmr_total", ""): _INFO_CMR_ON_CUDA,
    ("cuda", "native", "similarity", "l1"): _L1_ON_CUDA,
    ("cuda", "native", "intra_modal", "l1"): _L1_ON_CUDA,
}

_TRITON_FOLDER = str(Path(__file__).parent / "triton")
_BUILT = dict(_C.build_info()) if _C else {}
# device -> operators a backend has kernels for
NATIVE_KERNELS: dict[str, frozenset[str]] = {
    device: frozenset(_BUILT["operators"][device] if _BUILT else ()) for device in DEVICES
}
CUDA_ARCHITECTURES: tuple[str, ...] = tuple(_BUILT.get("cuda_architectures", ()))
TRITON_FILES = frozenset(module.name for module in pkgutil.iter_modules([_TRITON_FOLDER]))
# operators that share a file with another
_STEM = {f"{stem}_total": stem for stem in ("ranks", "sigmoid")}
_STEM["rbf_synthesis_logits"] = "rbf_synthesis"
NO_TRITON = "triton is not installed"
HAS_TRITON = find_spec("triton") is not None
# device -> the backend that is missed most there, and how to get it
REMEDIES = {
    "cpu": ("native", _extension.BUILD),
    "cuda": ("triton", "run `pip install triton`, which a CUDA build of torch brings along"),
}
# Rows of the larger side from which its absence is told: there the kernels take between .9 and .02
# of the time of plain PyTorch (README), at the papers' 128 rows it is a matter of single ms.
LARGE_BATCH = 1024
_told = {"cpu"} if _extension_told else set[str]()  # devices of which it was told
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # Triton's own switch


def triton_file(operator: str) -> str | None:
    """Return the name of the file that holds an operator's Triton kernels, None without any."""
    stem = _STEM.get(operator, operator)
    return stem if stem in TRITON_FILES else None


def range_of(device: str, backend: str, operator: str, metric: str = "") -> Range:
    """Return where a kernel runs and is taken."""
    found = RANGES.get((device, backend, operator, metric))
    return found or RANGES.get((device, backend, operator, ""), Range(""))


def why_not(
    operator: str, device: str, backend: str, sides: Sides = (0, 0), index: int | None = None
) -> str | None:
    """Return why a backend cannot run an operator on a device (without an index: the current)."""
    if backend == "reference":
        return None
    if backend == "native":
        if NOT_BUILT:
            return NOT_BUILT
        has_kernel = operator in NATIVE_KERNELS.get(device, ())
    else:
        if not HAS_TRITON:
            return NO_TRITON
        if device == "cpu" and not INTERPRETED:
            return "Triton runs on the CPU only under TRITON_INTERPRET=1"
        has_kernel = triton_file(operator) is not None
    if not has_kernel:
        return f"no {backend} kernel for {operator} on {device}"
    reason = device == "cuda" and _devices.why_not(backend, operator, CUDA_ARCHITECTURES, index)
    if reason:
        return reason
    most = range_of(device, backend, operator).most_rows
    if most == MANY or max(sides) <= most:
        return None
    got = "" if sides == LARGE else f", got {sides[0]:,} x {sides[1]:,}"
    return f"takes up to {most:,} rows of either side{got}"


def choose(
    operator: str, device: str, sides: Sides = LARGE, metric: str = "", index: int | None = None
) -> str:
    """Return the backend that "auto" picks for an operator over so many rows of two sides."""
    usable = []
    for backend in PREFERENCE.get(device, ()):
        if why_not(operator, device, backend, sides, index) is not None:
            continue
        first = range_of(device, backend, operator, metric).first_rows
        if first == MANY or (first and max(sides) <= first):
            return backend
        usable.append(backend)
    return usable[0] if usable else "reference"


def resolve(
    function: str,
    operator: str,
    like: Tensor,
    backend: str,
    sides: Sides = LARGE,
    metric: str = "",
) -> str | None:
    """Choose the operator namespace for a tensor's device; None means the reference.

    Args:
        function: the public function, for messages.
        operator: what is to run.
        like: a tensor on the device.
        backend: "auto" or the name that the caller asked for.
        sides: rows of the two sides that the operator compares.
        metric: how it compares them, if that is a choice.

    Raises:
        ValueError: the backend's name is unknown.
        RuntimeError: the backend was asked for by name and cannot run here.

    Inside a transform of torch.func "auto" is the reference.
    """
    _checks.option(function, "backend", backend, CHOICES)
    device, index = like.device.type, like.device.index
    # Kernels have no rules for torch.func's grad, vmap and jvp: plain PyTorch has.
    transformed = torch._C._are_functorch_transforms_active()
    if backend == "auto":
        backend = "reference" if transformed else choose(operator, device, sides, metric, index)
        if backend != "reference":
            return NAMESPACES[backend]
        if not transformed and not torch.compiler.is_compiling():
            _tell(operator, like, sides)
    if backend == "reference":
        return None
    if transformed:
        raise RuntimeError(
            f"{function}: backend {backend!r} cannot run inside a transform of torch.func (grad, "
            'vmap, jacrev, ...); pass backend="reference" or "auto"'
        )
    if why_not(operator, device, backend, sides, index) is None:
        return NAMESPACES[backend]
    reasons = "; ".join(
        f"{name}: {why_not(operator, device, name, sides, index) or 'available'}"
        for name in (*NAMESPACES, "reference")
    )
    raise RuntimeError(
        f"{function}: backend {backend!r} cannot run {operator} on {device} ({reasons})"
    )


def resolve_total(operator: str, like: Tensor, backend: str, sides: Sides) -> str | None:
    """Return the namespace of a whole loss as one operator, None where a loss goes by its parts."""
    device, index = like.device.type, like.device.index
    if torch._C._are_functorch_transforms_active():
        return None
    if backend == "auto":
        backend = choose(operator, device, sides, index=index)
        first = range_of(device, backend, operator).first_rows
        if first and max(sides) > first:
            return None
    elif backend != "reference" and why_not(operator, device, backend, sides, index) is not None:
        return None
    return NAMESPACES.get(backend)


def _tell(operator: str, like: Tensor, sides: Sides) -> None:
    """Say once that a large batch runs in plain PyTorch, and how to get the kernels."""
    device = like.device.type
    if device in _told or device not in REMEDIES:
        return
    backend, remedy = REMEDIES[device]
    reason = why_not(operator, device, backend)
    rows = like.shape[-2:-1] if sides is LARGE else sides
    # A size may be symbolic, in a graph that is traced: comparing it would bind the graph to it.
    known = [count for count in rows if isinstance(count, int)]
    if reason not in (NOT_BUILT, NO_TRITON) or max(known, default=0) < LARGE_BATCH:
        return
    _told.add(device)
    _extension.warn(
        f"{operator} of {max(known):,} rows on {device} runs in plain PyTorch: {reason}. "
        f"For the fused kernels, {remedy}"
    )


def available() -> list["Availability"]:
    """Return, for each operator and device type, what "auto" picks and why not the others."""
    from itm_kernels._availability import table

    return table()


def build_info() -> dict[str, object]:
    """Return what the extension was built with; empty without it."""
    return dict(_BUILT)


def remedies() -> dict[str, str]:
    """Return how to get the backends that are missing here."""
    gone = {"native": bool(NOT_BUILT), "triton": not HAS_TRITON and torch.version.cuda is not None}
    return {backend: how for backend, how in REMEDIES.values() if gone[backend]}


def processor() -> dict[str, str | int | bool]:
    """Return what the CPU's kernels run on: instruction set, threads, bf16 screening."""
    return _extension.processor(_C)
