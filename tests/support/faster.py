"""What makes Python faster in a process of tests: a third of the time of compiling graphs."""

from collections.abc import Callable


def in_one_chunk(run: Callable[[], object]) -> object:
    """Call a function with room for the frames of what it calls.

    CPython (3.11 to 3.14) maps 16 KiB where the last chunk of its stack of frames is full, and
    unmaps them when the first frame in them returns. A loop at such a depth does so in every
    iteration: 900,000 times in 50 compilations, a fifth of their time. This function's own frame
    is so large that it takes 1 MiB, of which half is left.
    """
    return run()


in_one_chunk.__code__ = in_one_chunk.__code__.replace(co_stacksize=70_000)


def measures_no_guards() -> None:
    """Keep Dynamo from flushing the caches to time the guards of every graph for a log: 35 ms."""
    from torch._dynamo import guards

    if hasattr(guards, "profile_guard_manager"):
        guards.profile_guard_manager = lambda *_: 0.0
