"""Races in global memory between the threads of a launch, found by gcc's thread sanitizer.

The emulator reports barriers and the begin and end of launches to it; nothing else orders threads.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from emulated import CSRC, EMULATOR, library, needs_compiler

# A launch may hold a whole grid: blocks of two launches are ordered.
FLAGS = ("-O1", "-g1", "-fsanitize=thread", "-DITM_RACES", "-DITM_MOST_BLOCKS=0x7fffffff")
OPTIONS = "halt_on_error=1 report_signal_unsafe=0 exitcode=66"

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program() -> Path:
    sources = [EMULATOR / "sanitized.cpp", *sorted((CSRC / "cuda").rglob("*.cu"))]
    try:
        return library("raced", sources, *FLAGS, link=())
    except RuntimeError as error:
        if "cannot find" not in str(error):
            raise
        pytest.skip("the compiler has no thread sanitizer")


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The sanitizer's shadow memory needs address randomisation off.
    setarch = shutil.which("setarch")
    command = [*([setarch, "-R"] if setarch else []), str(program), *arguments]
    environment = {**os.environ, "TSAN_OPTIONS": OPTIONS}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("race", ["blocks", "threads", "all"])
def test_a_planted_race_is_found(program: Path, race: str) -> None:
    done = run(program, race)
    assert done.returncode == 66, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert f"{race}_meet" in done.stderr


@pytest.mark.parametrize("order", ["barrier", "ticket"])
def test_threads_are_ordered_by_a_barrier_and_blocks_by_a_ticket(program: Path, order: str) -> None:
    done = run(program, order)
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stdout + done.stderr


def test_no_kernel_has_a_race(program: Path) -> None:
    done = run(program, *([] if os.environ.get("ITM_ALL_RACES") else ["quick"]))
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stdout + done.stderr
