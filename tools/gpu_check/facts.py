"""Describe this machine: GPU, driver, versions, picks of "auto", matrix product rates."""

import platform
import shutil
import subprocess
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks import limits, results
from itm_kernels import __main__ as information
from itm_kernels import backends
from tools.gpu_check.journal import Check, Setting, SkippedError

WANTED = ("pytest", "hypothesis", "numpy", "ruff", "matplotlib", "pytest-benchmark")
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"


def output_of(*command: str) -> str:
    """Return the output of a tool, or that it is not there."""
    if shutil.which(command[0]) is None:
        return "not there"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout + done.stderr).strip()


def installed(package: str) -> str:
    """Return a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing: what needs it is skipped"


def machine() -> dict[str, Any]:
    """Return the versions, and those of packages that some steps need."""
    nvcc = output_of("nvcc", "--version").splitlines()
    return {
        "gpu": output_of("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"),
        "cpu": results.cpu_model(),
        "python": platform.python_version(),
        **backends.versions(),
        "nvcc": nvcc[-1] if nvcc else "",
        "compute-sanitizer": shutil.which("compute-sanitizer") or "not there",
        "commit": results.commit() or "unknown",
        **{package: installed(package) for package in WANTED},
    }


def gpu() -> dict[str, Any]:
    """Return the properties of the GPU that torch reports."""
    if not torch.cuda.is_available():
        raise SkippedError("torch sees no GPU")
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "memory": found.total_memory,
        "l2": found.L2_cache_size,
    }


def picks(device: str) -> dict[str, Any]:
    """Return the backend that "auto" picks for every operator."""
    print(information.info(), flush=True)
    return {row.operator: row.auto for row in backends.available() if row.device == device}


def rates(device: str, side: int) -> dict[str, Any]:
    """Return the rate of a large square product at each precision, and of copies."""
    found = {}
    for name, dtype, setting in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp16", torch.float16, "highest"),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            probe = limits.Probe("product", side, side, dtype, device)
            found[f"{name} FLOP/s"] = sorted(probe.rate() for _ in range(5))[2]
        finally:
            torch.set_float32_matmul_precision(before)
    copies = limits.Probe("copy", 1, 1, torch.float32, device)
    return found | {"copy bytes/s": sorted(copies.rate() for _ in range(5))[2]}


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step."""
    side = 256 if setting.tiny else 8192
    return [
        Check("facts/machine", machine, predicted=1.0),
        Check("facts/gpu", gpu, predicted=1.0),
        Check("facts/picks", lambda: picks(setting.device), predicted=1.0),
        Check("facts/rates", partial(rates, setting.device, side), predicted=1.0),
    ]
