"""Guarantees of every loss besides its value: determinism, NaN, CUDA graphs, fullgraph, memory."""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import memory
from itm_kernels import backends
from loss_cases import CASES, Case, batch, gradients
from tools.gpu_check.journal import Check, Setting, SkippedError
from tools.gpu_check.values import backends_here, preferring

MIDDLE = (1000, 333)  # several tiles, ragged
LARGE = ((16384, 512), (32768, 512))
Guarantee = Callable[[Case], Any]
PREDICTED = 4.0  # seconds on an H200
INPUTS = 16  # allowed memory: this multiple of the inputs in fp32, plus one bit per pair


def rows(N: int, D: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return unit rows on a device, as leaf tensors."""
    return [side.detach().to(device).requires_grad_() for side in batch(N, D, dtype)]


def passes(case: Case, sides: list[Tensor]) -> list[Tensor]:
    """Return the loss and its gradients."""
    with torch.device(sides[0].device):
        loss = case.loss(*sides, "auto")
    return [loss.detach(), *gradients(loss, *sides)]


def same_bits(case: Case, dtype: torch.dtype, setting: Setting) -> None:
    """Run twice, with another memory layout the second time, and compare the bits."""
    N, D = (33, 17) if setting.tiny else MIDDLE
    sides = rows(N, D, dtype, setting.device)
    first = passes(case, sides)
    held = torch.empty(12_345_678 if not setting.tiny else 123, device=setting.device)
    second = passes(case, sides)
    del held
    for name, one, two in zip(("loss", "image", "text"), first, second, strict=True):
        assert torch.equal(one, two), f"{name}: {(one != two).sum().item()} numbers differ"


def nan_shows(case: Case, setting: Setting) -> None:
    """Put a NaN into rows of different tiles of each side; the loss must be NaN."""
    N, D = (33, 17) if setting.tiny else (300, 96)
    for side in (0, 1):
        for row in (0, N // 2, N - 1):
            sides = [t.detach().clone() for t in rows(N, D, torch.float32, setting.device)]
            sides[side][row, D // 2] = torch.nan
            with torch.device(setting.device):
                assert case.loss(*sides, "auto").isnan(), f"row {row} of side {side}"


def captures(case: Case, setting: Setting) -> dict[str, Any]:
    """Capture forward and backward in a CUDA graph; replay it on other values."""
    if setting.device != "cuda":
        raise SkippedError("graphs are CUDA's")
    sides = rows(*MIDDLE, torch.bfloat16, "cuda")
    other = [t.detach().roll(1, 0) for t in sides]
    with torch.device("cuda"):
        module = case.build("auto")  # outside the graph: a parameter is copied to the device once

    def once() -> list[Tensor]:
        loss = case.apply(module, *sides)
        return [loss, *gradients(loss, *sides)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = once()
    if case.name.startswith("info_cmr"):  # draws new noise at every replay
        graph.replay()
        assert captured[0].isfinite()
        return {"compared": False}
    with torch.no_grad():
        for side, new in zip(sides, other, strict=True):
            side.copy_(new)
    graph.replay()
    for found, wanted in zip([t.clone() for t in captured], once(), strict=True):
        assert torch.equal(found, wanted), "a replay differs from the eager call"
    return {"compared": True}


def compiles(case: Case, setting: Setting) -> None:
    """Compile with fullgraph=True; on CUDA with inductor."""
    N, D = (33, 17) if setting.tiny else (128, 256)
    sides = rows(N, D, torch.float32, setting.device)
    with torch.device(setting.device):
        module = case.build("auto")
    torch._dynamo.reset()
    backend = "inductor" if setting.device == "cuda" else "aot_eager"
    run = torch.compile(partial(case.apply, module), fullgraph=True, backend=backend)
    results = []
    for function in (partial(case.apply, module), run):
        torch.manual_seed(0)
        loss = function(*sides)
        results.append([loss, *gradients(loss, *sides)])
    for wanted, found in zip(*results, strict=True):
        if case.name.startswith("info_cmr") and backend == "inductor":
            assert found.isfinite().all()  # inductor uses its own generator
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def peak(case: Case, N: int, D: int, setting: Setting) -> dict[str, Any]:
    """Check that the peak memory of forward and backward is below that of a score matrix."""
    if case.name == "info_cmr-attached":
        raise SkippedError("a clustering per anchor is itself N x M assignments")
    sides = rows(N, D, torch.bfloat16, setting.device)
    ran: dict[str, str] = {}
    choose = backends.choose

    def spy(operator: str, device: str, sides: tuple[int, int], *rest: Any, **options: Any) -> str:
        if operator not in backends.TOTALS:  # for few rows, which another backend may run
            ran[operator] = choose(operator, device, (N, N), *rest, **options)
        return choose(operator, device, sides, *rest, **options)

    with patch.object(backends, "choose", spy):
        passes(case, [side[:64].detach().requires_grad_() for side in sides])
        if "reference" in ran.values():
            raise SkippedError(f"no kernel yet: {ran}")
        gc.collect()
        found = memory.peak(lambda: passes(case, sides), setting.device)
    allowed = INPUTS * 2 * N * D * 4 + N * N // 8
    if setting.device == "cuda":
        assert found is not None
        assert found <= allowed, f"{found / 2**20:,.0f} MiB, allowed {allowed / 2**20:,.0f} MiB"
    return {"peak": found, "allowed": allowed, "scores": 4 * N * N, "ran": ran}


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step, grouped by guarantee."""
    guarantees: dict[str, Guarantee] = {
        "same bits fp32": lambda case: same_bits(case, torch.float32, setting),
        "same bits bf16": lambda case: same_bits(case, torch.bfloat16, setting),
        "NaN shows": lambda case: nan_shows(case, setting),
        "graph": lambda case: captures(case, setting),
    }
    memory_guarantees: dict[str, Guarantee] = {
        f"memory N={N}": partial(peak, N=N, D=D, setting=setting)
        for N, D in (((64, 16),) if setting.tiny else LARGE)
    }
    # The slowest checks run last.
    last: dict[str, Guarantee] = {"compile": lambda case: compiles(case, setting)}
    # One loss of each kind is enough to test this tool.
    cases = CASES[::8] if setting.tiny else CASES
    kernel_backends = backends_here(setting.device)
    return [
        *guarantee_checks(guarantees, kernel_backends, cases, setting),
        *guarantee_checks(memory_guarantees, ["auto"], cases, setting),
        *guarantee_checks(last, kernel_backends, cases, setting),
    ]


def guarantee_checks(
    guarantees: dict[str, Guarantee],
    kernel_backends: list[str],
    cases: Sequence[Case],
    setting: Setting,
) -> list[Check]:
    """Return the checks of some guarantees, for every backend and loss."""
    return [
        Check(
            f"contract/{name}/{backend}/{case.name}",
            partial(with_backend, backend, setting.device, guarantee, case),
            predicted=PREDICTED,
        )
        for (name, guarantee), backend, case in product(guarantees.items(), kernel_backends, cases)
    ]


def with_backend(
    backend: str, device: str, guarantee: Guarantee, case: Case
) -> dict[str, Any] | None:
    """Check a guarantee with "auto" set to one backend wherever it has a kernel."""
    if backend == "auto":
        return guarantee(case)
    with preferring(device, backend):
        return guarantee(case)
