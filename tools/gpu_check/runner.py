"""Run all checks that need a GPU in one command, with the installed torch.

`make gpu-check OUT=folder STEPS="facts build values"` runs each step in its own process, which
is replaced if a kernel hangs or leaves the device unusable. Results are appended to records.jsonl
as checks end; the same command resumes where it stopped. summary.md shows the results.

    facts      GPU, driver, versions, backends that "auto" picks, matrix product rates
    build      the extension, in place, for this GPU only, without network
    core       values of every operator and loss against fp64, at one size
    bench      times against plain PyTorch, every row of the goal table
    profile    GPU time of every kernel of every row of the goal table
    replay     small batches, plain and in a CUDA graph: CUDA, Triton and eager PyTorch
    gluon      values and times of the Gluon kernels for sm_90
    contract   determinism, NaN, CUDA graphs, torch.compile, peak memory
    values     the other sizes and precisions against fp64: at most twice plain PyTorch's error
    rivals     times against torch.compile and the installed packages
    tune       tiles of the Triton kernels against those of _tile_table.TABLE
    suite      the test suite on this device
    sanitize   compute-sanitizer on small cases

`--plan` prints the predicted time of every step. `--resume-from FOLDER` starts from the results of
an earlier run, for machines where the output folder is a new one every time.
"""

import argparse
import importlib
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.gpu_check import summary
from tools.gpu_check.journal import ROOT, Check, Setting, Worker

# The most valuable steps first.
STEPS = (
    *("facts", "build", "core", "bench", "profile", "replay", "gluon", "contract", "values"),
    *("rivals", "tune", "suite", "sanitize"),
)
# Compiling a kernel takes seconds of one core; launching it takes almost no GPU time.
PROCESSES = {"core": 8, "values": 8, "contract": 6}
# Limits in minutes of early steps: later steps are worth more than what these leave unfinished.
MOST = {"facts": 1.0, "build": 4.0, "core": 3.0}
INTERRUPTED = threading.Event()
REPLACE = 3  # exit status of a worker whose device is broken
STARTING = 10.0  # seconds, predicted: a process imports torch
GRACE = 20.0  # seconds that a worker may take to start and to stop


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=STEPS, metavar="STEP")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes for each step")
    parser.add_argument("--within", type=float, default=9.5, help="minutes for all steps")
    parser.add_argument("--resume-from", type=Path, help="folder with the records of another run")
    parser.add_argument("--plan", action="store_true", help="print the predicted times and exit")
    parser.add_argument("--tiny", action="store_true", help="sizes that only test this tool")
    parser.add_argument(
        "--worker", help=argparse.SUPPRESS
    )  # the name of a run: this process is a worker
    return parser.parse_args(arguments)


def checks_of(step: str, setting: Setting) -> list[Check]:
    """Import the module of a step and return its checks."""
    module = importlib.import_module(f"tools.gpu_check.{step}")
    checks: list[Check] = module.checks(setting)
    return checks


def processes(step: str, cores: int) -> int:
    """Return the number of processes that share the checks of a step."""
    return max(1, min(PROCESSES.get(step, 1), cores // 2))


def plan(steps: Iterable[str], setting: Setting, cores: int = 16) -> dict[str, float]:
    """Return the predicted seconds of every step, capped by its limit."""
    found = {}
    for step in steps:
        of = processes(step, cores)
        seconds = STARTING + sum(check.predicted for check in checks_of(step, setting)) / of
        found[step] = min(seconds, 60 * MOST.get(step, math.inf))
    return found


def has_gpu() -> bool:
    """Return whether torch can use a GPU."""
    import torch

    return torch.cuda.is_available()


def device_is_broken(device: str) -> bool:
    """Return whether an error has left the device unusable for the rest of the process."""
    if device != "cuda":
        return False
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def work(step: str, setting: Setting, run: str) -> int:
    """Run a share of the checks of a step as a worker process."""
    os.setpgid(0, 0)  # processes that a check starts are killed with this one
    sys.path.insert(0, str(ROOT / "tests" / "support"))  # loss_cases
    worker = Worker(step, setting, run)
    whole = worker.work(checks_of(step, setting), lambda: device_is_broken(setting.device))
    return 0 if whole else REPLACE


def run_step(step: str, options: argparse.Namespace, minutes: float) -> None:
    """Run a step, in several processes if that does not disturb its measurements."""
    of = processes(step, 1 if options.tiny else os.cpu_count() or 2)
    runs = [f"{time.time():.0f}.{number}.{of}" for number in range(of)]
    with ThreadPoolExecutor(of) as pool:
        shares = [pool.submit(supervise, step, options, minutes, run) for run in runs]
        try:
            for share in shares:
                share.result()
        except KeyboardInterrupt:
            INTERRUPTED.set()
            raise


def supervise(step: str, options: argparse.Namespace, minutes: float, run: str) -> None:
    """Start worker processes for a share of a step until it is done or out of time."""
    deadline = time.time() + 60 * minutes
    setting = Setting(options.device, options.tiny, options.out, deadline)
    worker = Worker(step, setting, run)
    while True:
        process = start(step, setting, run)
        status, words = watch(process, setting, run)
        line = setting.journal.unfinished(run)
        if line is not None and process.returncode:
            words = words or f"the process ended with status {process.returncode}"
            setting.journal.add(line["key"], status, error=words, **worker.stamp)
            print(f"{line['key']}: {words}", flush=True)
        elif process.returncode not in (0, REPLACE):  # no check was running
            words = f"the step's process ended with status {process.returncode}"
            setting.journal.add(f"{step}/process", "failed", error=words, **worker.stamp)
            return
        if process.returncode == 0:
            if f"{step}/process" in setting.journal.latest():  # an earlier process failed
                setting.journal.add(f"{step}/process", "passed", **worker.stamp)
            return
        if time.time() > deadline or INTERRUPTED.is_set():
            return


def start(step: str, setting: Setting, run: str) -> subprocess.Popen[bytes]:
    """Start a worker process, which ends at the deadline of the setting."""
    left = (setting.deadline - time.time()) / 60
    command = [sys.executable, "-m", "tools.gpu_check", "--worker", run, "--steps", step]
    command += ["--out", str(setting.out), "--device", setting.device, "--minutes", f"{left:.3f}"]
    command += ["--tiny"] * setting.tiny
    return subprocess.Popen(command, cwd=ROOT)


def watch(process: subprocess.Popen[bytes], setting: Setting, run: str) -> tuple[str, str]:
    """Wait for a step's process; kill it if a check hangs or the step is over.

    Returns the status of an unfinished check, and the reason if the process was killed.
    """
    while True:
        try:
            process.wait(1)
            return "failed", ""
        except subprocess.TimeoutExpired:
            pass
        line, now = setting.journal.unfinished(run), time.time()
        over = now - setting.deadline - GRACE
        hangs = line is not None and now - line["time"] > line["limit"]
        if hangs or over > 0 or INTERRUPTED.is_set():
            end(process)
            return ("failed", "hangs: killed") if hangs else ("stopped", "killed: no time left")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker process and the processes that its check has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not created its process group yet
        process.kill()
    process.wait()


def resume(earlier: Path, out: Path) -> list[str]:
    """Copy the records of an earlier run into a new folder; return the file names."""
    if (out / "records.jsonl").exists():
        raise SystemExit(f"gpu-check: {out} has records of its own; pass a new --out")
    if not (earlier / "records.jsonl").exists():
        raise SystemExit(f"gpu-check: {earlier} has no records.jsonl to resume from")
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in earlier.iterdir() if path.suffix in (".json", ".jsonl"))
    for name in names:
        shutil.copyfile(earlier / name, out / name)
    return names


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if any check failed."""
    options = parsed(arguments)
    options.out = options.out.resolve()
    if options.worker:
        deadline = time.time() + 60 * options.minutes
        setting = Setting(options.device, options.tiny, options.out, deadline)
        return work(options.steps[0], setting, options.worker)
    if options.plan:
        sys.path.insert(0, str(ROOT / "tests" / "support"))
        setting = Setting(options.device, options.tiny, options.out, 0.0)
        passed = 0.0
        for step, seconds in plan(options.steps, setting).items():
            passed += seconds
            print(f"{step:10s}{seconds:8.0f} s  {passed / 60:6.1f} min")
        return 0
    if options.device == "cuda" and not has_gpu():
        sys.exit("gpu-check: torch sees no GPU; `--device cpu --tiny` tests the checks themselves")
    if options.resume_from:
        taken = resume(options.resume_from.resolve(), options.out)
        print(f"resumed from {', '.join(taken) or 'nothing'}", flush=True)
    end = time.time() + 60 * options.within
    failures = 0
    for step in options.steps:
        # A process is killed GRACE seconds after its deadline.
        left = (end - time.time() - GRACE) / 60
        print(f"-- {step}" if left > 0 else f"-- {step}: no time left", flush=True)
        if left <= 0:
            continue
        run_step(step, options, min(left, options.minutes, MOST.get(step, left)))
        failures = summary.write(options.out)  # after every step: the next may be the last
    print((options.out / "summary.md").read_text(encoding="utf-8"))
    return 1 if failures else 0
