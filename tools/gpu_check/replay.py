"""Time small batches against eager PyTorch, with plain calls and with CUDA graph replays.

A step of a small batch is bound by its launches, and without a graph by the Python code that issues
them. Every loss that is one CUDA operator at small batch is timed as such, in Triton, and in eager
PyTorch, in rounds of all three. Embeddings stay in the L2, as in training.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.interleaved import Row, distance
from benchmarks.shapes import WIDTH, Size
from itm_kernels import backends
from tools.gpu_check.goal_table import ENTRIES
from tools.gpu_check.journal import Check, Setting

LOSSES = ("max_of_hinges", "imc", "info_nce", "sigmoid", "info_cmr alone", "info_cmr")
ROWS = (128, 256, 512)
ROUNDS, CALLS = 15, 20
# Error of value and gradients relative to the norm; a wrong formula is off by about 1.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 1e-1}
Step = Callable[[], list[Tensor]]


def step(function: Callable[..., Tensor], row: Row) -> Step:
    """Return a function that runs forward and backward on its own copies of the inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in row.tensors]

    def run() -> list[Tensor]:
        value = function(*leaves)
        return [value, *torch.autograd.grad(value, leaves)]

    return run


def captured(run: Step) -> Callable[[], None]:
    """Capture a step in a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def microseconds(run: Callable[[], Any], device: str, calls: int) -> float:
    """Return the mean time of one call over several consecutive calls."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize()
    return 1e6 * (time.perf_counter() - start) / calls


def medians(
    contenders: dict[str, Callable[[], Any]], device: str, rounds: int, calls: int
) -> dict[str, float]:
    """Return the median time of every contender; each round runs all of them."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        microseconds(run, device, 3)
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(microseconds(run, device, calls))
    return {name: statistics.median(found) for name, found in times.items()}


def compared(name: str, size: Size, setting: Setting) -> dict[str, Any]:
    """Return the microseconds of a step, plain and replayed, and the ratios to eager PyTorch."""
    device = setting.device
    found = ENTRIES[name].prepare(size, device)
    steps = {"eager": step(found.formula, found.row)}
    for backend in (*backends.NAMESPACES, "auto"):
        run = step(partial(found.ours, backend=backend), found.row)
        try:
            values = run()
        except RuntimeError as error:
            if "cannot run" not in str(error):
                raise
            continue  # the backend cannot run here
        if found.comparable:  # each draws its own noise otherwise
            off = distance(values, steps["eager"]())
            assert max(off) <= TOLERANCE[size.dtype], (backend, off)
        steps[backend] = run
    rounds, calls = (2, 2) if setting.tiny else (ROUNDS, CALLS)
    result: dict[str, Any] = {"plain": with_ratios(medians(dict(steps), device, rounds, calls))}
    if device == "cuda":
        replays: dict[str, Callable[[], Any]] = {}
        for backend, run in steps.items():
            try:
                replays[backend] = captured(run)
            except RuntimeError as error:  # eager PyTorch may synchronize
                if backend != "eager":
                    raise
                result["eager is not captured"] = str(error)[:160]
        result["replay"] = with_ratios(medians(replays, device, rounds, calls))
    return result


def with_ratios(times: dict[str, float]) -> dict[str, float]:
    """Add the ratio of eager PyTorch's time to every other time."""
    ours = [name for name in times if name != "eager"]
    return times | {
        f"eager / {name}": times["eager"] / times[name] for name in ours if "eager" in times
    }


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: every loss at every size, the papers' batch size first."""
    sizes = (33,) if setting.tiny else ROWS
    width = 24 if setting.tiny else WIDTH
    dtypes = (torch.float32,) if setting.tiny else (torch.bfloat16, torch.float32)
    return [
        Check(
            f"replay/{name}/{Size(N, width, dtype)}",
            partial(compared, name, Size(N, width, dtype), setting),
            predicted=4.0,
        )
        for N, dtype, name in product(sizes, dtypes, LOSSES)
    ]
