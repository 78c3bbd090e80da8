"""CUDA kernels that start before the previous launch has ended first wait for it."""

import re
from pathlib import Path

import pytest

from tools.compile_report import overlap

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
FIRST = ["LDC R1, c[0x0][0x28]", "ACQBULK", "S2R R0, SR_TID.X", "PREEXIT", "LDG.E R4, [R2]", "EXIT"]


def bodies(source: str) -> dict[str, str]:
    """Return the first statement of every kernel of a source, by the kernel's name."""
    source = re.sub(r"//[^\n]*", "", source)
    found = {}
    for start in (match.end() for match in re.finditer("__global__", source)):
        name = re.search(r"(\w+_kernel)\(", source[start:])
        assert name, source[start : start + 200]
        body = source[source.index("{", start + name.end()) + 1 :]
        body = re.sub(r"^(\s*(using|static_assert|constexpr)\b[^;]*;)*", "", body)
        found[name[1]] = body.split(maxsplit=1)[0]
    return found


def test_every_kernel_begins_with_the_wait() -> None:
    sources = [path for path in CUDA.rglob("*.*") if path.suffix in (".cu", ".cuh", ".inl")]
    found = {
        name: first
        for path in sources
        for name, first in bodies(path.read_text(encoding="utf-8")).items()
    }
    assert len(found) >= 20
    assert {name for name, first in found.items() if first != "wait_for_launch_before();"} == set()


def test_a_kernel_that_waits_first_passes() -> None:
    overlap.check("kernel", FIRST, 90)
    overlap.check("kernel", ["LDG.E R4, [R2]", "LDGDEPBAR", "EXIT"], 89)


@pytest.mark.parametrize(
    ("code", "architecture", "words"),
    [
        (["LDG.E R4, [R2]", *FIRST], 90, "LDG.E R4"),
        (["@!P0 STG.E [R2], R4", *FIRST], 100, "@!P0 STG.E"),
        (["@P0 EXIT", *FIRST], 120, "@P0 EXIT"),
        (["BRA `(.L_x_1)", *FIRST], 90, "BRA"),
        (["@P0 ACQBULK", *FIRST], 90, "@P0 ACQBULK"),
        (["S2R R0, SR_TID.X"], 90, "never waits"),
        (FIRST, 89, "ACQBULK"),
    ],
)
def test_a_kernel_that_does_not_wait_is_refused(
    code: list[str], architecture: int, words: str
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(words)):
        overlap.check("kernel", code, architecture)


def test_shared_memory_and_constants_are_the_kernels_own() -> None:
    overlap.check("kernel", ["LDCU.64 UR4, c[0x0]", "STS [R1], R2", "LDS R2, [R1]", *FIRST], 90)
