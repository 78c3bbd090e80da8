"""Kernels that begin under the end of the launch before: they wait before they do anything.

Such a launch is made of every kernel that was compiled for sm_90 or later (`launch` in
csrc/cuda/launch.h). One that did not wait would read what is not written yet.
"""

import re
from collections.abc import Sequence

FIRST = 90  # the oldest architecture with a wait
WAIT = "ACQBULK"  # what ptxas makes of griddepcontrol.wait
# What may not come before it: global memory, the end, another way through the kernel.
_TOO_EARLY = re.compile(r"(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|EXIT|RET|CALL|BRA|BRX)\b")


def check(name: str, code: Sequence[str], architecture: int) -> None:
    """Raise unless a kernel waits first, or, on an older architecture, not at all."""
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
                "wait_for_launch_before() is its first statement"
            )
    raise RuntimeError(f"{name}, sm_{architecture}: the kernel never waits")
