"""The CUDA kernels on the emulator under gcc's address and undefined-behaviour sanitizers."""

import subprocess
from pathlib import Path

import pytest

from emulated import CSRC, EMULATOR, library, needs_compiler

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover")
# -Og builds the kernels in 39 CPU seconds, -O1 in 66.
FLAGS = ("-Og", "-DITM_ADDRESSES", *SANITIZERS)

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program() -> Path:
    sources = [EMULATOR / "sanitized.cpp", *sorted((CSRC / "cuda").rglob("*.cu"))]
    try:
        return library("sanitized", sources, *FLAGS, link=())
    except RuntimeError as error:
        if "cannot find" not in str(error):
            raise
        pytest.skip("the compiler has no sanitizers")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_an_access_off_its_alignment_is_found(program: Path) -> None:
    done = run(program, "misaligned")
    assert done.returncode != 0
    assert "store to misaligned address" in done.stderr


def test_sanitizers_report_nothing(program: Path) -> None:
    done = run(program)
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stdout + done.stderr
