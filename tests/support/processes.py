"""Run commands in processes of their own, in the checkout."""

import math
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(
    *command: object, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a command; what chooses the build is left out of its environment unless given."""
    inherited = {key: value for key, value in os.environ.items() if key != "ITM_KERNELS_BUILD"}
    return subprocess.run(
        [str(part) for part in command],
        env={**inherited, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


class Forked:
    """A function in a copy of this process, which imports nothing anew, with Popen's interface.

    The function returns the exit status of the process.
    """

    def __init__(self, function: Callable[..., int], *arguments: object) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns if there are threads, which may hold a lock while the process forks.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                status = function(*arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def wait(self, timeout: float = math.inf) -> None:
        """Wait for the end of the process, at most so many seconds."""
        end = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(["fork"], timeout)
            time.sleep(0.01)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """Kill the process."""
        os.kill(self.pid, signal.SIGKILL)
