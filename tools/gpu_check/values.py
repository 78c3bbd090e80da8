"""Compare every operator and loss, forward and backward, with the formula in fp64 on this device.

The error rule is that of the package: at most twice the error of plain PyTorch at the same
precision. Small batches are compared by the largest error. From 1000 rows on some pairs are so
close to a threshold or maximum that precisions decide them differently; errors are then compared by
their norm.

A small batch may break the rule by chance: errors of eager PyTorch may cancel in a sum, or a hinge
may lie within a rounding of 0. Three more batches are drawn, and the rule is applied to the
largest errors of all four, except fp32 batches whose error is within the jump at a nearby kink.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from itm_kernels import backends, losses, ops
from loss_cases import CASES, Case
from tools.gpu_check.journal import Check, Setting, SkippedError
from tools.gpu_check.rule import ErrorRuleError, Errors, errors_of, excused, judged, largest

PRECISIONS = {
    "fp32": (torch.float32, "highest"),
    "bf16": (torch.bfloat16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp16": (torch.float16, "highest"),
}
# Ragged and even for tiles and chunks, one row, one column; the most informative first.
FIRST = ((300, 333),)
FIRST_PRECISIONS = ("bf16", "fp32")
NEXT = ((1000, 512), (127, 333), (33, 96), (1000, 1000), (2, 1), (1, 3), (127, 500), (4096, 1024))
ROWS, WIDTHS = (1, 2, 33, 127, 1000, 4096), (1, 3, 96, 333, 500, 512, 1000, 1024)
TINY_FIRST, TINY = ((33, 17),), ((19, 8),)
# Seconds of a check on an H200: it compiles some kernels, or finds them in the cache.
PREDICTED = 2.0
BY_NORM = 1000  # rows from which errors are compared by their norm
DRAWS = 4  # batches whose largest errors are compared if the first one breaks the rule
NEAR = 2.0**-16  # relative change of the inputs that changes scores by a few roundings of fp32
# In tf32 they compute distances from products, as `torch.cdist` does; the reference subtracts.
BY_PRODUCTS = ("constraint-", "similarity-")
DRAWING = ("info_cmr", "info_cmr-attached")  # noise differs between precisions: fp64 only
SLOW = ("l1", "per_anchor", "attached")  # beyond this many rows plain PyTorch takes too long
SLOW_ROWS = 1000

Operation = Callable[..., Any]


def operators() -> dict[str, Operation]:
    """Return the differentiable operators as functions of two matrices and a backend."""

    def synthesis(x: Tensor, y: Tensor, backend: str, weights: str, logits: bool) -> Any:
        clusters = torch.arange(len(y), device=y.device) % 3
        options: dict[str, Any] = {"weights": weights, "backend": backend}
        if logits:
            return ops.rbf_synthesis_logits(x, y, clusters, 3, 0.8, **options).cosine
        return ops.rbf_synthesis(x, y, clusters, 3, 0.8, **options).vectors

    def sets(x: Tensor) -> Tensor:
        """Return sets of 5 rows, the last of which is padded with zeros."""
        return pad(x, (0, 0, 0, -len(x) % 5)).unflatten(0, (-1, 5))

    def square(x: Tensor) -> Tensor:
        side = min(x.shape)
        return x[:side, :side]

    scores: dict[str, Any] = {
        "late_interaction": ops.late_interaction, "cross_attention": ops.cross_attention
    }  # fmt: skip
    of_scores: dict[str, Any] = {
        "info_nce": lambda b: losses.InfoNCELoss(backend=b),
        "sigmoid": lambda b: losses.SigmoidLoss(backend=b),
        "max_of_hinges": lambda b: losses.MaxOfHingesLoss(backend=b),
        "sum_of_hinges": lambda b: losses.SumOfHingesLoss(backend=b),
    }
    found: dict[str, Operation] = {
        f"similarity-{metric}": lambda x, y, b, metric=metric: ops.similarity(
            x, y, metric, backend=b
        )
        for metric in ("dot", "cosine", "l1", "l2", "sqeuclidean")
    }
    found["hardest_negatives"] = lambda x, y, b: ops.hardest_negatives(x, y, backend=b)
    found["log_sum_exp"] = lambda x, y, b: ops.log_sum_exp(x, y, 20.0, backend=b)
    for direction in ("t2i", "i2t"):
        for name, score in scores.items():
            found[f"{name}-{direction}"] = lambda x, y, b, f=score, d=direction: f(
                sets(x), sets(y), direction=d, backend=b
            )
    for name, loss in of_scores.items():
        found[f"{name}-from_scores"] = lambda x, y, b, f=loss: f(b).from_scores(square(x))
    for weights, logits in product(("kam", "attention"), (False, True)):
        name = f"rbf_synthesis{'_logits' * logits}-{weights}"
        found[name] = lambda x, y, b, w=weights, z=logits: synthesis(x, y, b, w, z)
    return found


def everything() -> dict[str, tuple[Operation, bool]]:
    """Return every loss and operator by name, and whether it accepts ids."""
    found = {case.name: (loss_operation(case), case.takes_ids) for case in CASES}
    return found | {name: (operation, False) for name, operation in operators().items()}


def loss_operation(case: Case) -> Operation:
    """Return a loss as a function of two matrices and a backend."""
    return lambda x, y, backend, **ids: case.loss(x, y, backend, **ids)


def batch(
    N: int, D: int, dtype: torch.dtype, device: str, ids: bool, number: int = 0
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return unit rows with a common component, and shuffled ids with more texts than images."""
    draw = torch.Generator().manual_seed(N + D + 10_000 * number)
    M = 5 * N // 3 if ids and N > 2 else N
    shared = torch.randn(1, D, generator=draw, dtype=torch.float64)
    sides = [shared + torch.randn(n, D, generator=draw, dtype=torch.float64) for n in (N, M)]
    rows = [normalize(side, dim=1).to(device, dtype) for side in sides]
    if not ids:
        return rows, {}
    text_ids = torch.randperm(M, generator=draw) * N // M
    return rows, {"image_ids": torch.arange(N).to(device), "text_ids": text_ids.to(device)}


def results(
    operation: Operation, rows: list[Tensor], backend: str, ids: dict[str, Tensor]
) -> list[Tensor]:
    """Return the floating-point outputs and the gradients, converted to fp64."""
    leaves = [side.detach().requires_grad_() for side in rows]
    with torch.device(leaves[0].device):  # parameters of a loss
        found = operation(*leaves, backend, **ids)
    found = [found] if isinstance(found, Tensor) else [t for t in found if t.is_floating_point()]
    draw = torch.Generator().manual_seed(1)
    output_grads = (torch.randint(-4, 5, t.shape, generator=draw) for t in found)
    # bf16 represents these gradients exactly; a scalar gets 3, which is not 0.
    total = sum(
        (t.double() * (output_grad.to(t.device) if t.dim() else 3)).sum()
        for t, output_grad in zip(found, output_grads, strict=True)
    )
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [t.detach().double() for t in (*found, *grads)]


@contextmanager
def preferring(device: str, backend: str) -> Iterator[None]:
    """Make "auto" choose one backend wherever it has a kernel, for any number of rows."""
    anywhere = {key: found._replace(first_rows=0) for key, found in backends.RANGES.items()}
    with (
        patch.dict(backends.PREFERENCE, {device: (backend,)}),
        patch.dict(backends.RANGES, anywhere),
    ):
        yield


def jumps(operation: Operation, rows: list[Tensor], ids: dict[str, Tensor]) -> list[float]:
    """Return the jumps of the fp64 results as the inputs change by a few fp32 roundings."""
    draw = torch.Generator().manual_seed(2)
    rows = [side.double() for side in rows]
    moves = [
        side * NEAR * torch.randn(side.shape, generator=draw, dtype=side.dtype).to(side.device)
        for side in rows
    ]
    here, ahead, behind = (
        results(operation, [s + k * m for s, m in zip(rows, moves, strict=True)], "reference", ids)
        for k in (0, 1, -1)
    )
    # A smooth result has equal differences on both sides, up to the square of the small change.
    return [
        ((b - a) - (a - c)).abs().max().item() for a, b, c in zip(here, ahead, behind, strict=True)
    ]


def distances_by_products() -> AbstractContextManager[Any]:
    """Make `torch.cdist` use products, as it does by default from 26 rows on (context manager)."""
    cdist = torch.cdist

    def multiplied(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
        return cdist(x, y, p=p, compute_mode="use_mm_for_euclid_dist")

    return patch.object(torch, "cdist", multiplied)


def compare(
    name: str, operation: Operation, backend: str, precision: str, N: int, D: int, setting: Setting,
    ids: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Compare one operation with fp64 at one size."""
    dtype, matmul = PRECISIONS[precision]
    if name in DRAWING:
        dtype = torch.float64
    ran: dict[str, str] = {}
    choose = backends.choose

    def spy(operator: str, *arguments: Any, **options: Any) -> str:
        return ran.setdefault(operator, choose(operator, *arguments, **options))

    def errors_of_batch(number: int) -> list[Errors]:
        rows, of_ids = batch(N, D, dtype, setting.device, ids, number)
        with preferring(setting.device, backend), patch.object(backends, "choose", spy):
            found = results(operation, rows, "auto", of_ids)
        if set(ran.values()) == {"reference"}:
            raise SkippedError(f"no {backend} kernel for {', '.join(ran)}")
        products = precision == "tf32" and name.startswith(BY_PRODUCTS)
        with distances_by_products() if products else nullcontext():
            eager = results(operation, rows, "reference", of_ids)
        exact = results(operation, [side.double() for side in rows], "reference", of_ids)
        return errors_of(exact, eager, found, N >= BY_NORM)

    def at_a_kink(number: int, errors: list[Errors]) -> bool:
        rows, of_ids = batch(N, D, dtype, setting.device, ids, number)
        return precision == "fp32" and excused(errors, jumps(operation, rows, of_ids), epsilon)

    # Half precisions are computed in fp32; eager PyTorch rounds its outputs to half, too.
    epsilon = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    try:
        first = errors_of_batch(0)
        try:
            return {**judged(first, epsilon), "ran": ran}
        except ErrorRuleError:
            if N >= BY_NORM:
                raise
        draws = {n: errors_of_batch(n) if n else first for n in range(DRAWS)}
        held = {n: errors for n, errors in draws.items() if not at_a_kink(n, errors)}
        found = largest(list((held or draws).values()))
        return {**judged(found, epsilon), "ran": ran, "batches": list(held)}
    finally:
        torch.set_float32_matmul_precision(before)


def backends_here(device: str) -> list[str]:
    """Return the backends that have a kernel for at least one operator on this device."""
    return [
        name
        for name in backends.PREFERENCE[device]
        if any(backends.why_not(operator, device, name) is None for operator in backends.OPERATORS)
    ]


def first_sizes(tiny: bool) -> Sequence[tuple[int, int]]:
    """Return the sizes of the step `core`."""
    return TINY_FIRST if tiny else FIRST


def other_sizes(tiny: bool) -> Sequence[tuple[int, int]]:
    """Return all other sizes, the most informative first."""
    if tiny:
        return TINY
    others = product(ROWS, WIDTHS)
    return (*NEXT, *(size for size in others if size not in (*FIRST, *NEXT)))


def size_checks(
    step: str, sizes: Sequence[tuple[int, int]], precisions: Iterable[str], setting: Setting
) -> list[Check]:
    """Return the checks of a step, grouped by size."""
    found = []
    every, here = everything().items(), backends_here(setting.device)
    for (N, D), precision, backend, (name, (operation, takes_ids)) in product(
        sizes, precisions, here, every
    ):
        if N > SLOW_ROWS and any(word in name for word in SLOW):
            continue
        if name in DRAWING and precision != "fp32":
            continue
        for ids in (False, True)[: 1 + takes_ids]:
            arguments = name, operation, backend, precision, N, D, setting, ids
            key = f"{step}/{backend}/{name}/{precision}/N={N},D={D}{',ids' * ids}"
            found.append(Check(key, partial(compare, *arguments), predicted=PREDICTED))
    return found


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: first the precisions that `core` leaves out at its sizes."""
    left = [name for name in PRECISIONS if name not in FIRST_PRECISIONS]
    return [
        *size_checks("values", first_sizes(setting.tiny), left, setting),
        *size_checks("values", other_sizes(setting.tiny), PRECISIONS, setting),
    ]
