"""Run commands in processes of their own, in the checkout."""

import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
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
    return subprocess.run(
        [str(part) for part in command],
        env=environment(env),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def environment(env: dict[str, str] | None) -> dict[str, str]:
    """Return this process's environment without what chooses the build, and with `env`."""
    inherited = {key: value for key, value in os.environ.items() if key != "ITM_KERNELS_BUILD"}
    return {**inherited, **(env or {})}


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


def run_forked(
    script: Path, *words: object, env: dict[str, str] | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout like `run`, in a fork: importing torch takes two seconds.

    `before` is code that runs first. A script that prints Python's own warnings, or that must not
    find torch imported, needs a process of its own.
    """
    command = [str(script), *map(str, words)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:

        def work() -> int:
            for number, file in ((1, out), (2, err)):  # also for the programs that it starts
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = out, err
            os.environ.update(changed := environment(env))
            for name in os.environ.keys() - changed.keys():
                del os.environ[name]
            os.chdir(ROOT)
            sys.argv = command
            try:
                exec(before, {})
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as stop:
                if isinstance(stop.code, str):
                    print(stop.code, file=sys.stderr)
                return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            return 0

        forked = Forked(work)
        forked.wait()
        assert forked.returncode is not None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(command, forked.returncode, *texts)
