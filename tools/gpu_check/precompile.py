"""Compile the kernels of all `tune` candidates on all cores into Triton's own cache.

A kernel takes seconds on one core to compile: hundreds in sequence would use up all minutes of GPU
time. A process that uses a GPU cannot fork, so a process without one compiles them: launchers run
on meta tensors, as in the compile check.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tools.gpu_check.journal import ROOT, Setting, SkippedError

N, D = 4096, 1024  # the other measured sizes compile to the same kernels


@contextmanager
def tiled(kind: str, tile: Any) -> Iterator[None]:
    """Make kernels of a kind of operand use a tile, overriding the table for every epilogue."""
    from itm_kernels.triton import _operands, gluon

    look_up = _operands.tile_of

    def fixed(asked: str, *shape: Any) -> Any:
        return tile if asked == kind else look_up(asked, *shape)

    # A kernel in Gluon has its own tile.
    with patch.object(_operands, "tile_of", fixed), patch.object(gluon, "PROVEN", frozenset()):
        yield


def precompile(setting: Setting) -> dict[str, Any]:
    """Compile every candidate for this device."""
    if setting.device != "cuda" or torch.version.hip is not None:
        raise SkippedError("nothing is compiled for this device")
    major, minor = torch.cuda.get_device_capability()
    command = [sys.executable, "-m", "tools.gpu_check.precompile", f"{10 * major + minor}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return {"kernels": int(done.stdout.split()[-2]), "that fail": int(done.stdout.split()[-1])}


def planned(architecture: int, names: Sequence[str] = ()) -> list[Any]:
    """Return the jobs of all candidates, of the named launchers or of all."""
    from itm_kernels.triton._tile_table import Tile
    from tools.compile_report.triton_jobs import planning
    from tools.gpu_check import tune

    jobs: dict[str, Any] = {}
    x, y = torch.empty((2, N, D), device="meta")
    before = torch.get_float32_matmul_precision()
    for dtype, matmul, kind in tune.PRECISIONS.values():
        torch.set_float32_matmul_precision(matmul)
        sides: list[Tensor] = [x.to(dtype), y.to(dtype)]
        for name, launch in tune.launches().items():
            for numbers in tune.TILES[kind] if name in (names or (name,)) else ():
                with planning(name, architecture) as found, tiled(kind, Tile(*numbers)):
                    launch(*sides)
                jobs |= found
    torch.set_float32_matmul_precision(before)
    return list(jobs.values())


_jobs: Sequence[Any] = ()  # a job cannot be pickled: forked processes read it here


def _failed(number: int) -> bool:
    from tools.compile_report.triton_jobs import COMPILE

    try:
        COMPILE(*_jobs[number].arguments)
    except Exception:  # the sweep compiles it again and reports the reason
        return True
    return False


def main(architecture: int, processes: int) -> None:
    """Compile all kernels; print their number and how many of them fail."""
    global _jobs
    of_check = "TRITON_DEFAULT_FP_FUSION" in os.environ
    _jobs = planned(architecture)
    if not of_check:  # the compile check sets it, and it is part of the cache key
        os.environ.pop("TRITON_DEFAULT_FP_FUSION", None)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        failed = pool.map(_failed, range(len(_jobs)), chunksize=1)
    print(len(failed), sum(failed))


if __name__ == "__main__":
    main(int(sys.argv[1]), os.cpu_count() or 1)
