"""Versions that are written in several files are the same."""

import re
from pathlib import Path

from itm_kernels import __version__

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_and_the_changelog_name_the_version() -> None:
    assert re.findall(r"^version: (.*)$", text("CITATION.cff"), re.M) == [__version__]
    assert f"## [{__version__}]" in text("CHANGELOG.md")


def test_wheels_are_built_with_the_torch_of_the_tests() -> None:
    (pinned,) = re.findall(r"^torch==(.*)$", text("requirements-demo.txt"), re.M)
    assert set(re.findall(r"torch==([\d.]+)", text("pyproject.toml"))) == {pinned}


def test_hooks_run_the_tools_of_make_lint() -> None:
    hooks = set(re.findall(r"entry: \.venv/bin/([\w-]+)", text(".pre-commit-config.yaml")))
    recipe = text("Makefile").split("\nlint:")[1].split("\n\n")[0]
    assert hooks == set(re.findall(r"\$\(BIN\)/([\w-]+)", recipe))


def test_hosted_ci_runs_the_checks_of_ci_run() -> None:
    assert "run: .ci/run\n" in text(".github/workflows/ci.yml")
