"""Committed reports of compiled kernels: CI only compiles the kernels that have changed.

A report is stored under a hash of everything that it depends on: the source of the kernel (for
Triton also its IR), the options and version of the compiler, and the code that checks the report.
CI also recompiles one in SAMPLE recorded kernels, a different selection for each commit, and
compares hashes of IR and reports. That finds what the hash leaves out, such as a setting of the
compiler, which changes hundreds of kernels at once.
"""

import ast
import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

SAMPLE = 32
ROOT = Path(__file__).parents[2]


def key_of(*parts: object) -> str:
    """Return the hash that a report is stored under."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@cache
def code_of(path: Path) -> str:
    """Return the code of a module without comments and docstrings, which do not affect a report."""
    return undocumented(ast.parse(path.read_text()))


def undocumented(tree: ast.Module) -> str:
    """Return the code of a syntax tree without comments and docstrings; it changes the tree."""
    for node in ast.walk(tree):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def read(path: Path) -> dict[str, list[str]]:
    """Return the report lines of a table, by key."""
    reports: dict[str, list[str]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        key, _, text = line.partition("\t")
        if not line.startswith("#"):
            reports.setdefault(key, []).append(text)
    return reports


def write(path: Path, reports: Mapping[str, Iterable[str]], heading: str) -> None:
    """Write a table, sorted by text so that a changed kernel keeps its place."""
    lines = sorted((text, key) for key, texts in reports.items() for text in texts)
    body = "".join(f"{key}\t{text}\n" for text, key in lines)
    path.write_text(f"# {heading}\n{body}")


def outdated(path: Path, heading: str, known: Iterable[str], found: Iterable[str]) -> list[str]:
    """Return a complaint if a table does not list exactly the compiled kernels.

    A table of another compiler version lists none of them, which is not an error.
    """
    differ = len(set(known) ^ set(found))
    if not differ or (path.exists() and not path.read_text().startswith(f"# {heading}\n")):
        return []
    return [f"{differ} reports in {path.name} are missing or out of date: UPDATE=1 writes it"]


@cache
def turn() -> int:
    """Return the number of this commit's sample, or 0 outside a git checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 0
    return int(done.stdout or "0", 16) % SAMPLE


def is_sampled(key: str) -> bool:
    """Return whether a recorded kernel is recompiled at this commit."""
    return int(key, 16) % SAMPLE == turn()
