"""Checks, their records in records.jsonl, and the worker that runs them.

A check is a name and a function; its result is one line. Lines are appended as checks end, so that
results survive the loss of the machine. A line is valid for the sources that it was recorded with:
a check that has passed is not repeated until they change.
"""

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = ("itm_kernels/**/*.py", "csrc/**/*", "setup.py", "tests/support/loss_cases.py")
# Further files that the results of a step depend on, besides its own.
_ROWS = ("tools/gpu_check/goal_table.py", "benchmarks/*.py", "benchmarks/rivals/*.py")
_RULE = ("tools/gpu_check/values.py", "tools/gpu_check/rule.py")
USES = {
    "core": _RULE,
    "values": _RULE,
    "semantics": ("tools/semantics.py", *_RULE),
    "bench": _ROWS,
    "profile": ("tools/gpu_check/bench.py", *_ROWS),
    "replay": _ROWS,
    "rivals": ("tools/gpu_check/bench.py", *_ROWS),
    "contract": _RULE,
    "gluon": _RULE,
    "sanitize": _RULE,
}
FIRST_LINES, LONGEST = 6, 600  # of an error


class SkippedError(Exception):
    """A check that cannot run here; the message gives the reason."""


@dataclass(frozen=True)
class Check:
    """One check of a step."""

    key: str  # step/...
    run: Callable[[], dict[str, Any] | None]  # returns figures, raises on failure
    seconds: float = 150.0  # after which it counts as hanging
    predicted: float = 5.0  # seconds on a GPU, for the plan


@dataclass(frozen=True)
class Setting:
    """The device, sizes, output folder and deadline of a run."""

    device: str
    tiny: bool  # sizes that only test this tool
    out: Path
    deadline: float  # of this step, in seconds since the epoch

    @property
    def journal(self) -> "Journal":
        """Return the journal of this folder."""
        return Journal(self.out / "records.jsonl")


def digest(step: str) -> str:
    """Return a hash of the code under test and of the step's own sources.

    A commit hash does not serve: a copy of the working tree on another machine has no git.
    """
    patterns = (*SOURCES, f"tools/gpu_check/{step}.py", *USES.get(step, ()))
    files = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    total = hashlib.sha256()
    for path in sorted(files):
        if path.suffix not in (".pyc", ".so"):
            total.update(path.read_bytes())
    return total.hexdigest()[:12]


class Journal:
    """The records of one folder, to which several processes append line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, key: str, status: str, **facts: Any) -> None:
        """Append a line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"key": key, "status": status, "time": round(time.time(), 1), **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines except those that a crash has cut off."""
        found = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return found

    def latest(self) -> dict[str, dict[str, Any]]:
        """Return the latest result of every check."""
        return {line["key"]: line for line in self.lines() if line["status"] != "started"}

    def unfinished(self, run: str) -> dict[str, Any] | None:
        """Return the check that a process started last, or None if it has a result."""
        lines = [line for line in self.lines() if line.get("run") == run]
        return lines[-1] if lines and lines[-1]["status"] == "started" else None


class Worker:
    """Runs the checks of a step that are not recorded yet, until the deadline of the step."""

    def __init__(self, step: str, setting: Setting, run: str) -> None:
        self.step, self.setting, self.name = step, setting, run
        # A run is named "time.share.of": process `share` of `of` runs every `of`-th check.
        _, self.share, self.of = (int(number) for number in run.split("."))

    @cached_property
    def stamp(self) -> dict[str, str]:
        """Return the sources, run and device that a line is valid for."""
        return {"digest": digest(self.step), "run": self.name, "device": self.setting.device}

    def holds(self, line: dict[str, Any]) -> bool:
        """Return whether a result was obtained on this device with these sources."""
        return all(line.get(name) == self.stamp[name] for name in ("digest", "device"))

    def ordered(self, checks: Iterable[Check]) -> list[Check]:
        """Return the remaining checks: new ones first, then those that failed in an earlier run."""
        latest = self.setting.journal.latest()
        new, again = [], []
        for check in list(checks)[self.share :: self.of]:
            line = latest.get(check.key)
            if line is None or not self.holds(line):
                new.append(check)
            elif line["status"] != "passed" and line["run"] != self.name:
                again.append(check)
        return new + again

    def work(self, checks: Iterable[Check], broken: Callable[[], bool]) -> bool:
        """Run the remaining checks; return False if the process must be replaced by a new one."""
        journal, left = self.setting.journal, self.ordered(checks)
        for number, check in enumerate(left, start=1):
            if time.time() > self.setting.deadline:
                print(f"{self.step}: time is over, {len(left) - number + 1} left", flush=True)
                return True
            journal.add(check.key, "started", limit=check.seconds, **self.stamp)
            began = time.perf_counter()
            status, facts = attempt(check)
            facts["seconds"] = round(time.perf_counter() - began, 2)
            journal.add(check.key, status, **facts, **self.stamp)
            if status == "failed" or number % 50 == 0 or facts["seconds"] > 5:
                words = facts.get("error", "").splitlines()[:1]
                print(f"[{number}/{len(left)}] {check.key}: {status} {' '.join(words)}", flush=True)
            if status == "failed" and broken():
                return False
        return True


def attempt(check: Check) -> tuple[str, dict[str, Any]]:
    """Run one check; return its status, and its figures or the first lines of its error."""
    try:
        return "passed", check.run() or {}
    except SkippedError as reason:
        return "skipped", {"error": str(reason)}
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()][:FIRST_LINES]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        words = "\n".join([f"{type(error).__name__} at {place}: {lines[0] if lines else ''}"])
        figures = getattr(error, "figures", {})
        return "failed", {"error": "\n".join([words, *lines[1:]])[:LONGEST], **figures}
