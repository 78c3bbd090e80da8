"""Markers and helpers for tests of compiled kernels."""

import atexit
import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch

from itm_kernels import backends

needs_extension = pytest.mark.skipif(
    bool(backends.NOT_BUILT), reason=f"needs the compiled extension: {backends.NOT_BUILT}"
)
CAPABILITIES = ("default", "avx2", "avx512")  # from the lowest set to the highest
# The sets that this CPU has, whatever ATEN_CPU_CAPABILITY says.
_HAS = {"avx2": torch.cpu._is_avx2_supported(), "avx512": torch.cpu._is_avx512_supported()}
HERE = tuple(name for name in CAPABILITIES if _HAS.get(name, True))
HIGHEST = HERE[-1]


def left_out() -> str:
    """Return one line for the head of a report: which instruction sets are tested."""
    missing = [name for name in CAPABILITIES if name not in HERE]
    if backends.NOT_BUILT:
        return f"instruction sets: none is tested, {backends.NOT_BUILT}"
    return f"instruction sets: {', '.join(HERE)}; left out: {', '.join(missing) or 'none'}"


def on(capability: str, *values: object) -> object:
    """Return a test's parameters, skipped where the CPU lacks an instruction set."""
    reason = backends.NOT_BUILT or f"this CPU has no {capability}"
    lacks = pytest.mark.skipif(bool(backends.NOT_BUILT) or capability not in HERE, reason=reason)
    return pytest.param(capability, *values, marks=lacks)


# Tests that compare the loops of a set with those of every lower one.
every_instruction_set = pytest.mark.parametrize("capability", [on("avx2"), on("avx512")])


# Runs each script that is a line of JSON on stdin, and answers with what it printed.
_SERVER = """
import json, sys, torch
from contextlib import redirect_stdout
from io import StringIO
from itm_kernels import _C
threads = torch.get_num_threads()
for line in sys.stdin:
    torch.set_num_threads(threads)
    with redirect_stdout(StringIO()) as printed:
        exec(json.loads(line), {})
    print(json.dumps([_C.instruction_set(), *printed.getvalue().splitlines()]), flush=True)
"""


@cache
def _process_with(capability: str) -> subprocess.Popen[str]:
    """Start one process per instruction set: the set is chosen once, and torch starts in 2 s."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env={**os.environ, **paths, "ATEN_CPU_CAPABILITY": capability},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)  # closes stdin, which ends the process
    return process


@cache
def run_with(capability: str, script: str) -> list[str]:
    """Run a script with the loops of an instruction set that the CPU has; return its lines."""
    process = _process_with(capability)
    assert process.stdin and process.stdout
    print(json.dumps(script), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        _process_with.cache_clear()  # the next script has a new process
        raise RuntimeError(f"a script failed with the loops of {capability}: stderr has its error")
    used, *lines = json.loads(answer)
    assert used == capability.upper()
    return lines


def assert_agrees_with_lower_sets(capability: str, script: str) -> None:
    """Compare the numbers that a script prints, line by line, with those of every lower set."""
    reports = [
        torch.tensor([[float(x) for x in line.split()] for line in run_with(name, script)])
        for name in CAPABILITIES[: CAPABILITIES.index(capability) + 1]
    ]
    for lower in reports[:-1]:
        torch.testing.assert_close(reports[-1], lower, rtol=2e-4, atol=1e-6)
