"""The README says what is true: its example runs, its names exist, its figures are the files'."""

import importlib
import json
import re
from pathlib import Path

import pytest

import compare_losses
import itm_kernels
from benchmarks import report

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "examples" / "results" / "flickr8k.json"


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "criterion" in block
    ]
    exec(compile(example, "README.md", "exec"), {})
    assert "R-sum" in capsys.readouterr().out


def test_every_name_in_the_table_of_losses_exists() -> None:
    table = README.split("## The losses")[1].split("## ")[0]
    names = re.findall(r"`([A-Za-z_.]+)`", "".join(re.findall(r"^\| (`[^|]*)\|", table, re.M)))
    assert len(names) >= len(itm_kernels.losses.__all__)
    for name in names:
        module, _, attribute = name.rpartition(".")
        home = f"itm_kernels.{module}" if module else "itm_kernels.losses"
        assert hasattr(importlib.import_module(home), attribute), name
    assert set(itm_kernels.losses.__all__) <= set(names)


def test_migration_imports_work() -> None:
    for line in re.findall(r"^from itm_kernels\.compat.*$", README, re.M):
        exec(line, {})


def test_table_of_real_data_is_the_measured_one() -> None:
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    table = compare_losses.write_table(runs)
    assert table in README
    assert table == RESULTS.with_suffix(".md").read_text(encoding="utf-8")


def test_figures_of_speed_are_the_measured_ones() -> None:
    everything = report.load()
    assert report.with_section(README, report.readme_section(everything)) == README
    for name, page in report.pages(everything).items():
        assert page == (report.RESULTS / name).read_text(encoding="utf-8"), f"{name}: run report"
    for name in everything:
        assert f"benchmarks/results/{name}.md" in README
