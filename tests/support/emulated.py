"""CUDA kernels on the CPU: the build and the operators of tests/support/emulator.

The operators are the shipped ones, from binding to kernel; they live in a namespace of their own,
`itm_emulated`, with the CPU's dispatch key.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch

from itm_kernels import backends
from itm_kernels.ops import _define

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "tests" / "support" / "emulator"
SCHEDULER, BINDING = EMULATOR / "scheduler.cpp", EMULATOR / "operators.cpp"
# Host code, which is compiled without optimization: that takes a quarter of the time.
HOST = (BINDING, EMULATOR / "sanitized.cpp")
# Headers of nearly every kernel's file, which are parsed once for all of them.
PRECOMPILED = ("cuda/dispatch.cuh", "cuda/launch.h")
CSRC = ROOT / "csrc"
NAMESPACE = "itm_emulated"
# Operators with CUDA kernels: those that the bindings register.
OPERATORS = frozenset(
    _define.operator_of(name)
    for path in (CSRC / "cuda").rglob("*.cpp")
    for name in re.findall(r'\bm\.impl\("(\w+)"', path.read_text())
)
# Order.k* in emulator.h, and seeds: results must not depend on the order of threads.
SCHEDULES = {
    "forward": (0, 0),
    "reverse": (1, 0),
    "random-1": (2, 1),
    "random-2": (2, 2),
    "random-3": (2, 3),
}
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
FLAGS = (
    *("-std=c++20", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"),
    *("-Wno-unknown-pragmas", "-fno-strict-aliasing", f"-I{CSRC}", f"-I{EMULATOR}"),
)


def _has_fma() -> bool:
    """Return whether the CPU has fused multiply-add, which compilers leave out by default."""
    cpu = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and cpu.exists() and " fma " in cpu.read_text()


# nvcc fuses a product and a sum into one operation: so does this compiler, where the CPU can.
CONTRACTED = ("-mfma", "-ffp-contract=fast") if _has_fma() else ()
# An unaligned vector load or store ends a kernel, as it does on a device.
AS_ON_A_DEVICE = (*CONTRACTED, "-fsanitize=alignment", "-fno-sanitize-recover=alignment")


def library(
    name: str,
    sources: list[Path],
    *flags: str,
    device: tuple[str, ...] = (),
    link: tuple[str, ...] = ("-shared",),
) -> Path:
    """Return a library, or a program, of the sources and the emulator; built if anything is new.

    The flags in `device` are for kernels only.
    """
    flags = (*FLAGS, "-fPIC" if "-shared" in link else "-fPIE", *flags)
    words = (str(COMPILER), *flags, *device, *link, torch.__version__)
    known = hashlib.sha256(" ".join(words).encode())
    folders = (CSRC / "aten", CSRC / "cuda", EMULATOR)
    for path in sorted(path for folder in folders for path in folder.rglob("*.*")):
        known.update(path.as_posix().encode() + path.read_bytes())
    folder = ROOT / "build" / "emulator" / name / known.hexdigest()[:16]
    target = folder / f"{name}.so"
    if target.exists():
        return target
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)

    def compiled(source: Path) -> Path:
        own = flags if source in (SCHEDULER, BINDING) else (*flags, *device)
        # The thread sanitizer would report functions that switch fibers, and the others would take
        # a quarter of the time for the emulator's own checks.
        if source == SCHEDULER:
            own = tuple(flag for flag in flags if not flag.startswith(("-fsanitize", "-fno-san")))
        if source in HOST:
            own = (*own, "-O0")
        if source.suffix == ".cu":
            own = (*own, "-include", header)
        run(COMPILER, *own, "-x", "c++", "-c", source, "-o", folder / f"{source.stem}.o")
        return folder / f"{source.stem}.o"

    header = folder / "precompiled.h"
    header.write_text("".join(f'#include "{name}"\n' for name in PRECOMPILED))
    if any(source.suffix == ".cu" for source in sources):
        run(COMPILER, *flags, *device, "-x", "c++-header", header, "-o", f"{header}.gch")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, (*sources, SCHEDULER)))
    run(COMPILER, *flags, *objects, *link, "-o", folder / "unfinished.so")
    (folder / "unfinished.so").rename(target)
    return target


def run(*command: object) -> None:
    """Run a compiler; its output is the error."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr}")


@cache
def operators() -> ctypes.CDLL:
    """Define the emulated operators; return their library, which chooses schedules."""
    root = Path(torch.__file__).parent
    include = (root / "include", root / "include" / "torch" / "csrc" / "api" / "include")
    path = library(
        "operators",
        [BINDING, *sorted((CSRC / "cuda").rglob("*.cu"))],
        *("-DITM_EMULATED", "-fopenmp", *(f"-isystem{folder}" for folder in include)),
        device=AS_ON_A_DEVICE,
        link=("-shared", f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"),
    )
    for definition in _define.DEFINITIONS:
        if definition.operator in OPERATORS:
            _define.define_in(NAMESPACE, definition)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


def launches() -> int:
    """Return how many grids have been launched."""
    count = operators().emulator_launches
    count.restype = ctypes.c_int64
    return int(count())


class Noted(NamedTuple):
    """A grid that would run."""

    kernel: str
    blocks: int


MOST_BLOCKS = 7  # ITM_MOST_BLOCKS: larger grids go on in launches of their own


@contextmanager
def noting() -> Iterator[list[Noted]]:
    """Record launches and run nothing: the outputs of operators stay uninitialised."""
    library = operators()
    library.emulator_noted.restype = ctypes.c_char_p
    found: list[Noted] = []
    library.emulator_note(ctypes.c_bool(True))
    try:
        yield found
    finally:
        library.emulator_note(ctypes.c_bool(False))
        goes_on = False
        for line in library.emulator_noted().decode().splitlines():
            symbol, blocks = line.split()
            name = re.search(r"cuda\d+(\w+?_kernel)", symbol)
            grid = Noted(name[1] if name else symbol, int(blocks))
            if goes_on and found[-1].kernel == grid.kernel:
                found[-1] = Noted(grid.kernel, found[-1].blocks + grid.blocks)
            else:
                found.append(grid)
            goes_on = grid.blocks == MOST_BLOCKS


@contextmanager
def unwritten_memory_shows() -> Iterator[None]:
    """Let at::empty return NaN and the largest integers, as PyTorch can."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def as_native(schedule: str = "forward") -> Iterator[None]:
    """Replace the compiled operators on the CPU by the emulated ones."""
    order, seed = SCHEDULES[schedule]
    operators().emulator_schedule(order, ctypes.c_uint64(seed))
    with (
        patch.dict(backends.NAMESPACES, native=NAMESPACE),
        patch.dict(backends.NATIVE_KERNELS, cpu=OPERATORS),
        patch.object(backends, "NOT_BUILT", ""),
        unwritten_memory_shows(),
    ):
        yield
