"""Everything that only a GPU can show, in one command, with the torch that is there.

`make gpu-check OUT=folder STEPS="facts build values"` runs each step in a process of its own, which
is replaced when a kernel breaks its device or hangs. Results are appended to records.jsonl as they
come; the same command again goes on where it stopped. summary.md is the page to read.

    facts      GPU, driver, versions, what "auto" picks, rates of products
    build      the extension for this GPU alone, in place, without network
    core       every operator and loss against fp64 at one size
    bench      ours against plain PyTorch, every row of the goal table
    replay     small batches, plain and in a CUDA graph: CUDA's operators, Triton's and eager's
    contract   same bits twice, NaN shows, CUDA graphs, torch.compile, peak memory
    values     the other sizes and precisions against fp64, at most twice plain PyTorch's error
    rivals     ours against torch.compile and the packages that are installed
    tune       tiles of the Triton kernels against the choice of _tile_table.TABLE
    suite      the test suite on this device
    sanitize   compute-sanitizer on small cases

`--plan` prints what every step is predicted to take. `--resume-from FOLDER` goes on from the
results of an earlier run, where the output folder is a new one every time.
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

# Most valuable first.
STEPS = (
    *("facts", "build", "core", "bench", "replay", "gluon", "contract", "values", "rivals"),
    *("tune", "suite", "sanitize"),
)
# Compiling a kernel takes seconds of one core and launching it none of the GPU.
PROCESSES = {"core": 8, "values": 8, "contract": 6}
# Minutes that a step may take at most where others wait for it that are worth more than its rest.
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
    parser.add_argument("--minutes", type=float, default=8.0, help="of each step, at most")
    parser.add_argument("--within", type=float, default=9.5, help="minutes of the whole command")
    parser.add_argument("--resume-from", type=Path, help="folder with the records of another run")
    parser.add_argument("--plan", action="store_true", help="predict, and run nothing")
    parser.add_argument("--tiny", action="store_true", help="sizes that only test this tool")
    parser.add_argument(
        "--worker", help=argparse.SUPPRESS
    )  # a run's name: this is a step's process
    return parser.parse_args(arguments)


def checks_of(step: str, setting: Setting) -> list[Check]:
    """Return a step's checks; its file is imported in its own process only."""
    module = importlib.import_module(f"tools.gpu_check.{step}")
    checks: list[Check] = module.checks(setting)
    return checks


def processes(step: str, cores: int) -> int:
    """Return among how many processes a step's checks are shared out."""
    return max(1, min(PROCESSES.get(step, 1), cores // 2))


def plan(steps: Iterable[str], setting: Setting, cores: int = 16) -> dict[str, float]:
    """Return the seconds that every step is predicted to take, within what it may take."""
    found = {}
    for step in steps:
        of = processes(step, cores)
        seconds = STARTING + sum(check.predicted for check in checks_of(step, setting)) / of
        found[step] = min(seconds, 60 * MOST.get(step, math.inf))
    return found


def has_gpu() -> bool:
    """Tell whether there is anything to check."""
    import torch

    return torch.cuda.is_available()


def device_is_broken(device: str) -> bool:
    """Tell whether an error has left the device unusable for the rest of the process."""
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
    """Be the process of a step."""
    os.setpgid(0, 0)  # what a check starts is ended with it
    sys.path.insert(0, str(ROOT / "tests" / "support"))  # loss_cases
    worker = Worker(step, setting, run)
    whole = worker.work(checks_of(step, setting), lambda: device_is_broken(setting.device))
    return 0 if whole else REPLACE


def through(step: str, options: argparse.Namespace, minutes: float) -> None:
    """Run a step, in several processes where that does not disturb what it measures."""
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
    """Start processes for a share of a step until it is through or its time is over."""
    deadline = time.time() + 60 * minutes
    setting = Setting(options.device, options.tiny, options.out, deadline)
    worker = Worker(step, setting, run)
    while True:
        left = (deadline - time.time()) / 60
        command = [sys.executable, "-m", "tools.gpu_check", "--worker", run, "--steps", step]
        command += ["--out", options.out, "--device", options.device, "--minutes", f"{left:.3f}"]
        command += ["--tiny"] * options.tiny
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT)
        status, words = watch(process, setting, run)
        line = setting.journal.unfinished(run)
        if line is not None and process.returncode:
            words = words or f"the process ended with status {process.returncode}"
            setting.journal.add(line["key"], status, error=words, **worker.stamp)
            print(f"{line['key']}: {words}", flush=True)
        elif process.returncode not in (0, REPLACE):  # not a check's doing
            words = f"the step's process ended with status {process.returncode}"
            setting.journal.add(f"{step}/process", "failed", error=words, **worker.stamp)
            return
        if process.returncode == 0:
            if f"{step}/process" in setting.journal.latest():  # it has ended otherwise before
                setting.journal.add(f"{step}/process", "passed", **worker.stamp)
            return
        if time.time() > deadline or INTERRUPTED.is_set():
            return


def watch(process: subprocess.Popen[bytes], setting: Setting, run: str) -> tuple[str, str]:
    """Wait for a step's process; kill it if a check hangs or the step is over.

    Returns what becomes of a check that is not finished, and why if the process was killed.
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
    """Kill a step's process and what its check has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # too young to have a group of its own
        process.kill()
    process.wait()


def resume(earlier: Path, out: Path) -> list[str]:
    """Copy the records of an earlier run into a folder that has none; return their names."""
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
    """Run the command line; the exit status is that of the worst check."""
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
        sys.exit("gpu-check: torch sees no GPU; `--device cpu --tiny` tries the checks themselves")
    if options.resume_from:
        taken = resume(options.resume_from.resolve(), options.out)
        print(f"resumed from {', '.join(taken) or 'nothing'}", flush=True)
    end = time.time() + 60 * options.within
    failures = 0
    for step in options.steps:
        # A process is killed some seconds after its time is over.
        left = (end - time.time() - GRACE) / 60
        print(f"-- {step}" if left > 0 else f"-- {step}: no time left", flush=True)
        if left <= 0:
            continue
        through(step, options, min(left, options.minutes, MOST.get(step, left)))
        failures = summary.write(options.out)  # after every step: the next may be the last
    print((options.out / "summary.md").read_text(encoding="utf-8"))
    return 1 if failures else 0
