"""Every file of the CPU backend includes what it uses: setup.py compiles them in one unit.

In one unit, a file would compile with the headers that an earlier file includes.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from processes import ROOT

CSRC = ROOT / "csrc"
ATEN = Path(torch.__file__).parent / "include"
OPERATORS = {path.relative_to(ATEN).as_posix() for path in ATEN.glob("ATen/ops/*.h")}
DECLARATION = re.compile(
    r"^(?:(?:struct|class|union|enum class) (\w+)|using (?:\w+::)*(\w+)(?: =|;)|"
    r"(?:template <[^\n]*> )?(?:[\w:<>,&*]+ +)+[*&]?(\w+)(?:\(| =|\{|\[|;))",
    re.M,
)
INCLUDE = re.compile(r'^#include [<"](.*)[>"]\n', re.M)


def read() -> dict[str, str]:
    """Return the texts of the files that are compiled in one unit, and of their headers."""
    found = [
        path for folder in (".", "aten", "cpu", "cpu/simd") for path in (CSRC / folder).glob("*.*")
    ]
    return {
        path.relative_to(CSRC).as_posix(): path.read_text()
        for path in found
        if path.suffix == ".h" or path.suffix == ".cpp" and path.parent.name != "simd"
    }


@cache
def declared(text: str) -> set[str]:
    """Return the names that a file declares outside of classes and functions."""
    return {name for names in DECLARATION.findall(text) for name in names if name}


@cache
def used(text: str) -> tuple[set[str], set[str]]:
    """Return the words of a file that may be declared elsewhere, and its calls of ``at::``."""
    code = re.sub(r'//.*|"(?:[^"\\\n]|\\.)*"', "", text)
    local = set(re.findall(r"^ +const [\w:<>]+ (\w+)\(", code, re.M))
    words = set(re.findall(r"(?<![\w.>])(?<!at::)(\w+)(?![\w;.]| [=+])", code))
    calls = set(re.findall(r"\bat::(\w+?)(?:_out)?\(", code))
    return words - declared(text) - local, {f"ATen/ops/{name}.h" for name in calls} & OPERATORS


def reached(name: str, files: dict[str, str]) -> set[str]:
    """Return a file and all headers that it includes, transitively in ours."""
    found, pending = set(), [name]
    while pending:
        if (each := pending.pop()) not in found:
            found.add(each)
            pending += INCLUDE.findall(files.get(each, ""))
    return found


def not_included(files: dict[str, str]) -> list[str]:
    """Return the headers that declare what a file uses and that it does not reach."""
    found = []
    declarations = {name: declared(text) for name, text in files.items() if name.endswith(".h")}
    for name, text in files.items():
        if name.startswith("cpu/simd/"):  # in units of their own
            continue
        headers = reached(name, files)
        words, missing = used(text)
        for word in words:
            by = [header for header, names in declarations.items() if word in names]
            missing = missing | set(by[:1] if headers.isdisjoint(by) else ())
        found += [f"{name} must include {header}" for header in sorted(missing - headers)]
    return found


def test_files_include_what_they_use() -> None:
    assert not_included(read()) == []


@pytest.mark.parametrize("kind", ["ours", "ATen"])
def test_a_missing_include_is_found(kind: str) -> None:
    """Without any one of its lines, a file is reported unless it reaches that header otherwise."""
    files, removed = read(), 0
    assert len(files) > 30
    for name, text in files.items():
        for line in re.finditer(INCLUDE, text):
            header = line[1]
            if header not in files if kind == "ours" else not header.startswith("ATen/ops/"):
                continue
            without = {**files, name: text.replace(line[0], "", 1)}
            own = Path(name).stem == Path(header).stem  # declares what the file defines
            if header not in reached(name, without) and not own:
                removed += 1
                assert any(each.endswith(f" {header}") for each in not_included(without))
    assert removed > 30
