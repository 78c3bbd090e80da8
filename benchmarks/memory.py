"""Peak memory of a call: resident pages on the CPU, torch's counter on CUDA."""

import ctypes
import gc
import re
import resource
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"), re.M)
    return int(found.group(1)) * 1024 if found else 0


def available() -> int:
    """Return the bytes available without swapping; 0 if the system does not report them."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.M)
    return int(found.group(1)) * 1024 if found else 0


def forbid_more_than_there_is(held_back: int = 1 << 30) -> None:
    """Make an allocation beyond the available memory raise, instead of killing the process."""
    if available():
        limit = _status("VmSize") + available() - held_back
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return re.search("allocate|out of memory|bad_alloc", str(error)) is not None


def peak(function: Callable[[], object], device: str) -> int | None:
    """Return the peak memory of one call above the memory held before; None if it is not reported.

    On Linux the kernel's high-water mark is reset first, and the C library returns its free blocks.
    Otherwise memory that an earlier call has freed would not be counted.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not STATUS.exists():
        function()
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        pass  # not glibc: its free blocks are not counted
    CLEAR.write_text("5")
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)
