"""Run the files of the test suite that accept another device on this device."""

import importlib.util
import re
import subprocess
import sys
import time
from functools import partial
from typing import Any

from tools.gpu_check.journal import FIRST_LINES, ROOT, Check, Setting, SkippedError

MINUTES = 8
# These tests compare with operators of eager PyTorch that only have CPU kernels.
WITHOUT_STAND_IN = "not schema and not fake_gives and not in_blocks"
FILES = {
    "contract/test_every_loss.py": "not second_derivative",
    "contract/test_ops.py": WITHOUT_STAND_IN,
    "ops/test_ranks.py": WITHOUT_STAND_IN,
    "contract/test_every_loss_compiled.py": "",
    "contract/test_cuda_graphs.py": "",
}
OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")
EVERY = 20.0  # seconds
TINY = {"contract/test_ops.py": "ties"}


def suite(file: str, chosen: str, setting: Setting) -> dict[str, Any]:
    """Run the tests of a file; fail with the names of those that fail.

    The results so far are recorded every 20 seconds, in case the machine is lost.
    """
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    # Warnings are errors in CI; other versions of the packages may emit more of them.
    options = ["-v", "-W", "default", "-p", "no:cacheprovider", "--tb=line"]
    command = [sys.executable, "-m", "pytest", f"tests/{file}", *options]
    command += ["--device", setting.device, *(["-k", chosen] if chosen else [])]
    if setting.device == "cuda" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", "6"]  # most of the time is compilation of kernels
    count, failed, last, said = 0, [], "", time.time()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            status = OUTCOME.search(line)
            count += status is not None
            if status and status[1] in ("FAILED", "ERROR"):
                failed.append(line.replace(status[1], "").split("[gw")[0].strip())
            if time.time() - said > EVERY:
                said = time.time()
                note(setting, file, count, failed)
    print(f"{file}: {last}", flush=True)
    if process.returncode:
        error = AssertionError("\n".join([last, *failed[:4]]))
        error.figures = {"failed": failed}  # type: ignore[attr-defined]
        raise error
    return {"result": last}


def note(setting: Setting, file: str, count: int, failed: list[str]) -> None:
    """Record the progress of a file."""
    status = "failed" if failed else "passed"
    words = {"error": "\n".join(failed[:FIRST_LINES])} if failed else {}
    setting.journal.add(f"suite/{file} so far", status, tests=count, failed=failed, **words)


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per file."""
    files = TINY if setting.tiny else FILES
    return [
        Check(f"suite/{file}", partial(suite, file, chosen, setting), 60 * MINUTES, 120.0)
        for file, chosen in files.items()
    ]
