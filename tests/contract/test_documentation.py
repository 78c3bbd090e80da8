"""Links and file names in the documentation lead to files of the repository."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
# A path in backticks: with a folder and an ending, or below a folder of the repository.
PATH = re.compile(r"`((?:[\w.*-]+/)+[\w.*-]*)`")
# Folders that programs create, and words with a slash that name no file.
NOT_IN_THE_REPOSITORY = ("build/", "runs/")
# Citations of papers by a number, and of pages.
CITATION = re.compile(
    r"\bpapers? [0-9]\b|\bmaths, [a-z]+ \w+|(?<![\w/.-])[\w./-]*[\w-]\.md\b", re.I
)
WRITTEN = ("summary.md", "RESULTS.md")  # by programs
CODE = (".py", ".h", ".inl", ".cpp", ".cu", ".cuh", ".toml", ".txt", ".yml", ".yaml", ".cff")


@cache
def tracked() -> tuple[str, ...]:
    """Return the repository's files."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return tuple(name for name in done.stdout.splitlines() if (ROOT / name).exists())


def missing_links(document: Path) -> list[str]:
    links = LINK.findall(document.read_text(encoding="utf-8"))
    return [
        link
        for link in links
        if not re.match(r"[a-z]+:", link) and not (document.parent / link).exists()
    ]


def missing_paths(text: str) -> list[str]:
    found = []
    for path in PATH.findall(text):
        top = path.split("/")[0]
        if path.startswith(NOT_IN_THE_REPOSITORY) or not (ROOT / top).is_dir():
            continue
        if not any(ROOT.glob(path.removesuffix("/"))):
            found.append(path)
    return found


def missing_commands(text: str) -> list[str]:
    """Return the make targets and the modules of the repository that do not exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    named = re.findall(r"(?:^|`|\b[A-Z]+=\S+ )make ([a-z][\w-]*)", text, re.M)
    found = [f"make {target}" for target in named if target not in targets]
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        ours = (ROOT / module.split(".")[0]).is_dir()
        if ours and not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            found.append(f"-m {module}")
    return found


def foreign_pages(text: str) -> list[str]:
    """Return the citations of pages that no reader of the repository has."""
    folders = ROOT, ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "results" / "predicted"
    return [
        cited
        for cited in CITATION.findall(text)
        if cited not in WRITTEN and not any((folder / cited).is_file() for folder in folders)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    assert missing_links(document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_paths_exist(document: Path) -> None:
    assert missing_paths(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_commands_exist(document: Path) -> None:
    assert missing_commands(document.read_text(encoding="utf-8")) == []


def test_missing_commands_are_found() -> None:
    text = (
        "`make test`\nmake none PYTHON=python3\n`python -m benchmarks.report` python3 -m tools.none"
    )
    assert missing_commands(text) == ["make none", "-m tools.none"]


def test_missing_links_and_paths_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#top) [b](none.md) [c](https://example.org/none.md)")
    assert missing_links(page) == ["none.md"]
    text = "`csrc/module.cpp` `csrc/cpu/none.cpp` `csrc/cuda/*.none` `tests/contract/` `either/or`"
    assert missing_paths(text) == ["csrc/cpu/none.cpp", "csrc/cuda/*.none"]


def test_source_files_cite_no_page_that_is_not_in_the_repository() -> None:
    own = Path(__file__).relative_to(ROOT).as_posix()
    found = [
        f"{name}: {cited}"
        for name in tracked()
        if (name.endswith(CODE) or name in ("Makefile", ".ci/run")) and name != own
        for cited in foreign_pages((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert found == []


def test_foreign_pages_are_found() -> None:
    text = "Paper 3 (maths, section 6), style.md, docs/none.md; docs/maths.md and README.md"
    assert foreign_pages(text) == ["Paper 3", "maths, section 6", "style.md", "docs/none.md"]
