"""Rates of the machine, measured with every row: products, fp32 instructions, copies.

A limit is the least work that the mathematics needs, divided by the machine's rate for that kind of
work. The rate is measured in every round of a row, so that slow phases of the machine affect both.
"""

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

UNITS = {"product": "FLOP/s", "instructions": "fp32 lane instructions/s", "copy": "bytes/s"}
# Side of the product. Below, overhead dominates; above, the rate does not change.
LEAST_SIDE, MOST_SIDE = 512, 2048
MOST_SIDE_CUDA = 16384
STEPS = 1 << 20  # some milliseconds
COPIED = 1 << 26  # bytes: beyond the caches
COPIED_CUDA = 1 << 29
ISSUED, LONGEST_ISSUED = 2e-4, 0.05  # seconds of the host for a call of few kernels, and at most
CYCLES = 2e9  # of a GPU per second
FLUSHED = 1 << 28  # bytes: beyond the L2 of every GPU, written before each timed call


@dataclass(frozen=True)
class Work:
    """The least work of a row, forward and backward, in the unit of its kind."""

    kind: str  # product, instructions or copy
    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Return the work of forward and backward."""
        return self.forward + self.backward


def synchronize(device: str) -> None:
    """Wait for the device, so that the clock includes all of its work."""
    if device == "cuda":
        torch.cuda.synchronize()


class GpuTimes(NamedTuple):
    """The seconds of one call on the GPU, and those in which the host issued it."""

    gpu: float
    host: float


def seconds(function: Callable[[], object], device: str) -> float:
    """Return the time of one call: by the clock on the CPU, on the GPU by `gpu_times`."""
    if device == "cuda":
        return gpu_times(function).gpu
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@cache
def _flushed() -> Tensor:
    return torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")


def gpu_times(function: Callable[[], object], host: float = ISSUED) -> GpuTimes:
    """Time a call between two events, with a cold L2, on a GPU that is busy until it is issued.

    The time of the host is then not part of the GPU's, as in a training step that keeps the queue
    full. A call that waits for the GPU ends this, and what it issues afterwards is included.

    Args:
        function: the call.
        host: predicted seconds of the host; the GPU waits for twice as long.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronize("cuda")
    _flushed().zero_()
    torch.cuda._sleep(int(2 * min(host, LONGEST_ISSUED) * CYCLES))
    start.record()
    began = time.perf_counter()
    function()
    issued = time.perf_counter() - began
    end.record()
    synchronize("cuda")
    return GpuTimes(start.elapsed_time(end) / 1000, issued)


class Probe:
    """Measures the rate of one kind of work at a row's size, once per call."""

    def __init__(self, kind: str, N: int, D: int, dtype: torch.dtype, device: str) -> None:
        self.device = device
        self.run: Callable[[], object]
        side = min(max(N, LEAST_SIDE), MOST_SIDE_CUDA if device == "cuda" else MOST_SIDE)
        if kind == "product":
            x, y = (torch.randn(side, D, device=device, dtype=dtype) for _ in range(2))
            out = torch.empty(side, side, device=device, dtype=dtype)
            self.amount, self.run = 2.0 * side * side * D, lambda: torch.mm(x, y.T, out=out)
        elif kind == "instructions":
            self.amount, self.run = _instructions(device)
        else:
            size = COPIED_CUDA if device == "cuda" else COPIED
            source = torch.ones(size, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            self.amount, self.run = 2.0 * size, lambda: target.copy_(source)
        seconds(self.run, device)

    def rate(self) -> float:
        """Return the rate now, in the unit of the kind."""
        return self.amount / seconds(self.run, self.device)


def _instructions(device: str) -> tuple[float, Callable[[], object]]:
    if device == "cuda":
        return _instructions_cuda()
    library, threads = _library(), torch.get_num_threads()
    return float(library.chains()) * STEPS * threads, lambda: library.multiply_add(STEPS, threads)


def _instructions_cuda() -> tuple[float, Callable[[], object]]:
    """256 multiply-adds on every element of a tensor, fused by torch.compile."""
    steps, x = 256, torch.rand(1 << 24, device="cuda")

    @torch.compile
    def chain(x: Tensor) -> Tensor:
        value = x
        for _ in range(steps):
            value = torch.addcmul(x, value, x)
        return value

    return float(steps) * x.numel(), lambda: chain(x)


@cache
def _library() -> ctypes.CDLL:
    """Compile fma.cpp for the instruction set that torch found."""
    sets = {"AVX512": ["-mavx512f", "-mprefer-vector-width=512"], "AVX2": ["-mavx2", "-mfma"]}
    flags = sets.get(torch.backends.cpu.get_cpu_capability(), [])
    built = Path(tempfile.mkdtemp()) / "fma.so"
    source = Path(__file__).with_name("fma.cpp")
    compiler = os.environ.get("CXX", "g++")
    # -ffast-math would fold the loop into its closed form.
    options = "-O3 -fopenmp -shared -fPIC".split()
    command = [compiler, *options, *flags, str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(built))
    library.multiply_add.argtypes = [ctypes.c_int64, ctypes.c_int]
    library.multiply_add.restype = ctypes.c_double
    return library


def measured(device: str) -> dict[str, float]:
    """Measure and return every rate, for the header of the results."""
    rates = {"copy bytes/s": Probe("copy", 1, 1, torch.float32, device).rate()}
    N, D = (8192, 8192) if device == "cuda" else (2048, 1024)
    for dtype in (torch.float32, torch.bfloat16):
        name = f"product {str(dtype).removeprefix('torch.')} FLOP/s"
        rates[name] = max(Probe("product", N, D, dtype, device).rate() for _ in range(3))
    rates["fp32 lane instructions/s"] = Probe("instructions", 1, 1, torch.float32, device).rate()
    return rates
