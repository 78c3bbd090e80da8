"""Overlapping launches: checks in machine code that a kernel waits before it does anything else.

Kernels compiled for sm_90 or later may start while the previous launch still runs (`launch` in
csrc/cuda/launch.h). A kernel that did not wait would read values that are not yet written.
"""

import re
from collections.abc import Sequence

FIRST = 90  # the oldest architecture with a wait
WAIT = "ACQBULK"  # the instruction of griddepcontrol.wait
# Instructions that must not precede it: global memory accesses, exits, branches.
_TOO_EARLY = re.compile(r"(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|EXIT|RET|CALL|BRA|BRX)\b")


def check(name: str, code: Sequence[str], architecture: int) -> None:
    """Raise unless a kernel waits first or, on an older architecture, never waits."""
    waits = [line for line in code if WAIT in line]
    if architecture < FIRST:
        if waits:
            raise RuntimeError(f"{name}, sm_{architecture}: {WAIT}")
        return
    for line in code:
        if line.startswith(WAIT):
            return
        if WAIT in line or _TOO_EARLY.match(re.sub(r"^@\S+\s+", "", line)):
            raise RuntimeError(
                f"{name}, sm_{architecture}: {line!r} comes before the kernel has waited; "
                "make wait_for_launch_before() its first statement"
            )
    raise RuntimeError(f"{name}, sm_{architecture}: the kernel never waits")
