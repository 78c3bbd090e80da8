"""What the tests of compiled kernels share."""

import os
import subprocess
import sys
from itertools import combinations

import pytest
import torch

from itm_kernels import backends

needs_extension = pytest.mark.skipif(
    bool(backends.NOT_BUILT), reason=f"needs the compiled extension: {backends.NOT_BUILT}"
)
CAPABILITIES = ("default", "avx2", "avx512")


def run_with(capability: str, script: str) -> tuple[str, list[str]]:
    """Run a script with the loops of an instruction set; return the set in use, and its lines."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    named = "import torch\nprint(torch.backends.cpu.get_cpu_capability())\n"
    done = subprocess.run(
        [sys.executable, "-c", named + script],
        env={**os.environ, **paths, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
    )
    used, *lines = done.stdout.splitlines()
    return used, lines


def assert_instruction_sets_agree(script: str) -> None:
    """Hold the numbers that a script prints, line by line, against those of every other set."""
    reports = {}
    for capability in CAPABILITIES:
        used, lines = run_with(capability, script)
        reports[used] = torch.tensor([[float(x) for x in line.split()] for line in lines])
    for a, b in combinations(reports.values(), 2):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-6)
