"""The CUDA kernels once more on the emulator, under gcc's sanitizers."""

import subprocess

import pytest

from emulated import CSRC, EMULATOR, library, needs_compiler

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover")


@needs_compiler
def test_no_sanitizer_has_a_word_to_say() -> None:
    sources = [EMULATOR / "sanitized.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]
    try:
        program = library("sanitized", sources, "-O1", *SANITIZERS, link=())
    except RuntimeError as error:
        if "cannot find" not in str(error):
            raise
        pytest.skip("the compiler has no sanitizers")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "clean"), done.stdout + done.stderr
