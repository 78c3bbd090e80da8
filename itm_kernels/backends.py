"""The one place that chooses a backend.

A backend is an operator namespace, a device is a dispatch key. Which kernels a backend has is read
from the dispatcher and from the folder of Triton kernels when the package is imported, so that a
choice is a table look-up that `torch.compile` can trace.

Choices between algorithms within one backend are listed in `_policies.py`.
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
from itm_kernels._public import UnnamedRuntimeError

if TYPE_CHECKING:
    from itm_kernels._availability import Availability

# NOT_BUILT: why the compiled extension is not available; empty if it is.
_C, NOT_BUILT, _extension_warned = _extension.load()

# Filled by `ops._define.define`, from the definitions.
OPERATORS: list[str] = []
TOTALS: list[str] = []  # whole losses as one operator, from embeddings to the reduced value
NAMESPACES = {"native": "itm_native", "triton": "itm_triton"}
CHOICES = get_args(Backend)  # "auto", "reference" and the namespaces
PREFERENCE = {"cpu": ("native", "triton"), "cuda": ("triton", "native")}  # then reference
DEVICES = tuple(PREFERENCE)
MANY = sys.maxsize
Sides = tuple[int, int]
LARGE = (MANY, MANY)  # for two sides of unknown size


class Range(NamedTuple):
    """The sizes that a kernel supports, and those at which "auto" prefers it."""

    reason: str
    first_rows: int = 0  # of the larger side: up to here "auto" prefers it, before PREFERENCE
    most_rows: int = MANY  # of the larger side: the most that it supports


# Counted, not measured (benchmarks/results/predicted/small-batch.md): the time of a step in a CUDA
# graph, which runs no Python between launches, against Triton's. A block multiplies 32 x 32 pairs
# and waits for shared memory: a product at D = 1024 reaches 26 of the 67 TFLOP/s of fp32, and takes
# 2 us at 128 rows, 5 at 256 and 20 at 512; tensor cores take 4 us at 512 rows (9 for fp32 rows).
# Triton's 5 to 19 launches take 1.1 to 6 times as long at 128 rows, .7 to 3 times at 256 and .4 to
# 1.3 times at 512, with the largest factors for fp32 rows.
_MAXIMA_ON_CUDA = Range("three launches, no Python between them", first_rows=256, most_rows=1024)
_SUMS_ON_CUDA = Range("four launches, no Python between them", first_rows=256, most_rows=1024)
_WHOLE_ON_CUDA = Range("the reduced loss in three launches", first_rows=256, most_rows=1024)
_BOUNDS_ON_CUDA = Range("five or six launches, no Python between them", first_rows=256)
_SYNTHESIS_ON_CUDA = Range("one block per anchor, five launches", first_rows=256)
# One block reads all rows of a problem: a single large problem would leave the other blocks idle.
_CLUSTERS_ON_CUDA = Range("one block per problem, up to 3 launches", first_rows=256, most_rows=1024)
_START_ON_CUDA = Range("one block per problem, two launches", first_rows=512, most_rows=1024)
_INFO_CMR_ON_CUDA = Range("seven launches", first_rows=256, most_rows=1024)
_L1_ON_CUDA = Range("l1 is not a matrix product", first_rows=MANY)
# (device, backend, operator, metric), with "" for every metric. Other kernels support all sizes.
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

_EVERY_SIZE = Range("")
_TRITON_FOLDER = str(Path(__file__).parent / "triton")
_BUILT = dict(_C.build_info()) if _C else {}
# Device -> operators with native kernels, as the dispatcher has them.
NATIVE_KERNELS: dict[str, frozenset[str]] = dict.fromkeys(DEVICES, frozenset())
CUDA_ARCHITECTURES: tuple[str, ...] = tuple(_BUILT.get("cuda_architectures", ()))
TRITON_FILES = frozenset(module.name for module in pkgutil.iter_modules([_TRITON_FOLDER]))
SHARED_FILES: dict[str, str] = {}  # operator -> Triton file, where it has no file of its own
NO_TRITON = "triton is not installed"
HAS_TRITON = find_spec("triton") is not None
# Device -> its preferred backend, and how to install it.
REMEDIES = {
    "cpu": ("native", _extension.BUILD),
    "cuda": ("triton", "run `pip install triton`, which CUDA builds of torch depend on"),
}
# Rows of the larger side from which a missing backend is warned of: from here on the kernels take
# between .02 and .9 times as long as plain PyTorch (docs/performance.md); at the 128 rows of the
# papers the difference is a few ms.
LARGE_BATCH = 1024
_warned = {"cpu"} if _extension_warned else set[str]()  # devices
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # Triton's own switch


def add_operator(operator: str, forward: str) -> None:
    """Add an operator, `<loss>_total` for a whole loss; forward: its name in the dispatcher."""
    added = TOTALS if operator.endswith("_total") else OPERATORS
    if operator not in added:
        added.append(operator)
    qualified = f"{NAMESPACES['native']}::{forward}"
    for device in DEVICES if _C else ():
        if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, device.upper()):
            NATIVE_KERNELS[device] |= {operator}


def triton_file(operator: str) -> str | None:
    """Return the name of the file with an operator's Triton kernels, None if it has none."""
    name = SHARED_FILES.get(operator, operator)
    return name if name in TRITON_FILES else None


def range_of(device: str, backend: str, operator: str, metric: str = "") -> Range:
    """Return the sizes that a kernel supports, and those at which "auto" prefers it."""
    found = RANGES.get((device, backend, operator, metric))
    return found or RANGES.get((device, backend, operator, ""), _EVERY_SIZE)


def why_not(
    operator: str, device: str, backend: str, sides: Sides = (0, 0), index: int | None = None
) -> str | None:
    """Return why a backend cannot run an operator, None if it can; index: of the CUDA device."""
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
    return f"supports at most {most:,} rows per side{got}"


def choose(
    operator: str, device: str, sides: Sides = LARGE, metric: str = "", index: int | None = None
) -> str:
    """Return the backend that "auto" picks for an operator and the rows of its two sides."""
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
    operator: str,
    like: Tensor,
    backend: str,
    sides: Sides = LARGE,
    metric: str = "",
) -> str | None:
    """Choose the operator namespace for a tensor's device; None means the reference.

    Args:
        operator: its name in `OPERATORS`.
        like: a tensor on the device.
        backend: "auto", or a backend by name.
        sides: rows of the two sides that the operator compares.
        metric: of the comparison, for operators with several.

    Raises:
        ValueError: the backend is unknown.
        RuntimeError: the backend was requested by name and cannot run here.

    Within a transform of torch.func, "auto" picks the reference.
    """
    _checks.option("backend", backend, CHOICES)
    device, index = like.device.type, like.device.index
    # Kernels define no rules for torch.func's grad, vmap and jvp; plain PyTorch does.
    transformed = torch._C._are_functorch_transforms_active()
    if backend == "auto":
        backend = "reference" if transformed else choose(operator, device, sides, metric, index)
        if backend != "reference":
            return NAMESPACES[backend]
        if not transformed and not torch.compiler.is_compiling():
            _warn_large_batch(operator, like, sides)
    if backend == "reference":
        return None
    if transformed:
        raise UnnamedRuntimeError(
            f"backend {backend!r} cannot run inside a transform of torch.func (grad, "
            'vmap, jacrev, ...); pass backend="reference" or "auto"'
        )
    if why_not(operator, device, backend, sides, index) is None:
        return NAMESPACES[backend]
    reasons = "; ".join(
        f"{name}: {why_not(operator, device, name, sides, index) or 'available'}"
        for name in (*NAMESPACES, "reference")
    )
    raise UnnamedRuntimeError(f"backend {backend!r} cannot run {operator} on {device} ({reasons})")


def choose_total(
    operator: str, device: str, sides: Sides = LARGE, index: int | None = None
) -> str | None:
    """Return the backend that "auto" picks for a whole loss, None to compute the loss by parts."""
    backend = choose(operator, device, sides, index=index)
    first = range_of(device, backend, operator).first_rows
    return None if backend == "reference" or (first and max(sides) > first) else backend


def resolve_total(operator: str, like: Tensor, backend: str, sides: Sides) -> str | None:
    """Return the namespace of a whole loss as one operator, None to compute the loss by parts."""
    device, index = like.device.type, like.device.index
    if torch._C._are_functorch_transforms_active() or backend == "reference":
        return None
    if backend == "auto":
        chosen = choose_total(operator, device, sides, index)
        return None if chosen is None else NAMESPACES[chosen]
    # A backend that cannot run the whole loss may run its parts.
    if why_not(operator, device, backend, sides, index) is not None:
        return None
    return NAMESPACES.get(backend)


def _warn_large_batch(operator: str, like: Tensor, sides: Sides) -> None:
    """Warn once that a large batch runs in plain PyTorch, and how to install the kernels."""
    device = like.device.type
    if device in _warned or device not in REMEDIES:
        return
    backend, remedy = REMEDIES[device]
    reason = why_not(operator, device, backend)
    rows = like.shape[-2:-1] if sides is LARGE else sides
    # In a traced graph a size may be symbolic; comparing it would specialise the graph.
    known = [count for count in rows if isinstance(count, int)]
    if reason not in (NOT_BUILT, NO_TRITON) or max(known, default=0) < LARGE_BATCH:
        return
    _warned.add(device)
    _extension.warn(
        f"{operator} of {max(known):,} rows on {device} runs in plain PyTorch: {reason}. "
        f"For the fused kernels, {remedy}"
    )


def available() -> list["Availability"]:
    """Return what "auto" picks for each operator and device, and why not the other backends."""
    from itm_kernels._availability import table

    return table()


def build_info() -> dict[str, object]:
    """Return what the extension was built with and for; empty without it."""
    operators = {device: sorted(kernels) for device, kernels in NATIVE_KERNELS.items()}
    return {**_BUILT, "operators": operators} if _BUILT else {}


def remedies() -> dict[str, str]:
    """Return how to install the backends that are missing here."""
    gone = {"native": bool(NOT_BUILT), "triton": not HAS_TRITON and torch.version.cuda is not None}
    return {backend: how for backend, how in REMEDIES.values() if gone[backend]}


def processor() -> dict[str, str | int | bool]:
    """Return the CPU's instruction set, the threads, and whether bf16 screening is on."""
    return _extension.processor(_C)
