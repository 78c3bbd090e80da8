"""The test suite on this device, file by file, where its tests allow another device."""

import importlib.util
import re
import subprocess
import sys
from functools import partial
from typing import Any

from tools.journal import ROOT, Check, Setting, SkippedError

MINUTES = 8
# Operators in eager PyTorch, which these compare with, have CPU kernels only.
WITHOUT_STAND_IN = "not schema and not fake_gives and not in_blocks"
FILES = {
    "test_every_loss.py": "not second_derivative",
    "test_ops.py": WITHOUT_STAND_IN,
    "test_ranks.py": WITHOUT_STAND_IN,
    "test_every_loss_compiled.py": "",
    "test_cuda_graphs.py": "",
}
TINY = {"test_ops.py": "ties"}


def suite(file: str, chosen: str, device: str) -> dict[str, Any]:
    """Run the tests of a file; fail with the names of those that fail."""
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    # Warnings are errors for the versions of CI, which these need not be.
    options = ["-q", "-W", "default", "-p", "no:cacheprovider", "--tb=line", "--device", device]
    command = [sys.executable, "-m", "pytest", f"tests/{file}", *options]
    command += ["-k", chosen] if chosen else []
    if device == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", "6"]  # what takes time is compiling kernels
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    last = lines[-1] if lines else done.stderr[-300:]
    print(f"{file}: {last}", flush=True)
    if done.returncode:
        failed = [re.sub(r"^(FAILED|ERROR) ", "", t) for t in lines if re.match("FAILED|ERROR", t)]
        error = AssertionError("\n".join([last, *failed[:4]]))
        error.figures = {"failed": failed}  # type: ignore[attr-defined]
        raise error
    return {"result": last}


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per file."""
    files = TINY if setting.tiny else FILES
    return [
        Check(f"suite/{file}", partial(suite, file, chosen, setting.device), 60 * MINUTES)
        for file, chosen in files.items()
    ]
