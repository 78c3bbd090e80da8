"""Builds what runs on the emulator (tests/emulator) with the host's compiler, once per source."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
EMULATOR = ROOT / "tests" / "emulator"
CSRC = ROOT / "csrc"
# Order.k* in emulator.h, and seeds: what the hardware leaves open must not matter.
SCHEDULES = [(0, 0), (1, 0), (2, 1), (2, 2), (2, 3)]
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover", "-fno-sanitize=vptr", "-g")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def library(name: str, sources: list[Path], *flags: str) -> Path:
    """Return a shared library of the sources and the emulator, built if any of them is new."""
    headers = [*CSRC.rglob("*.*"), *EMULATOR.glob("*.*")]
    flags = ("-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", *flags)
    known = hashlib.sha256(" ".join((str(COMPILER), *flags)).encode())
    for path in sorted(headers):
        known.update(path.as_posix().encode() + path.read_bytes())
    folder = ROOT / "build" / "emulator" / f"{name}-{known.hexdigest()[:16]}"
    target = folder / f"{name}.so"
    if target.exists():
        return target
    for old in folder.parent.glob(f"{name}-*"):
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True)
    include = [f"-I{CSRC}", f"-I{EMULATOR}"]
    objects = []
    for source in (*sources, EMULATOR / "scheduler.cpp"):
        objects.append(folder / f"{source.stem}.o")
        run(COMPILER, *flags, *include, "-x", "c++", "-c", source, "-o", objects[-1])
    unfinished = folder / "unfinished.so"
    run(COMPILER, *flags, "-shared", *objects, "-o", unfinished)
    unfinished.rename(target)
    return target


def run(*command: object) -> None:
    """Run a compiler; what it says is the error."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode or done.stderr:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
