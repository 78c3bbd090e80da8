"""Settings that make test processes faster: a third less time for graphs and large matrices."""

import ctypes
import gc
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Keep freed memory: the system clears every page that it maps, again for every matrix."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def exempt_objects() -> None:
    """Exempt the objects that exist from garbage collection, except for garbage."""
    gc.collect()
    gc.freeze()


def in_one_chunk(run: Callable[[], object]) -> object:
    """Call a function with room for the frames of what it calls.

    CPython, from 3.11, maps 16 KiB where the last chunk of its stack of frames is full, and
    unmaps them when the first frame in them returns. A loop at such a depth does so in every
    iteration: 900,000 times in 50 compilations, a fifth of their time. This function's own frame
    is so large that it takes 1 MiB, of which half is left.
    """
    return run()


in_one_chunk.__code__ = in_one_chunk.__code__.replace(co_stacksize=70_000)


def measure_no_guards() -> None:
    """Keep Dynamo from flushing the caches to time the guards of every graph for a log: 35 ms."""
    from torch._dynamo import guards

    if hasattr(guards, "profile_guard_manager"):
        guards.profile_guard_manager = lambda *_: 0.0
