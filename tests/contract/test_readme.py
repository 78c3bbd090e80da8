"""The README is correct: its examples run, its names exist, its figures are the files'."""

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


def test_the_examples_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "R-sum" in printed
    assert "LogitScale(14.2857, learnable=True, max_scale=100.0)" in printed


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
    for document, text in report.documents(everything).items():
        assert text == document.read_text(encoding="utf-8"), f"{document.name}: run report"
    for name, page in report.pages(everything).items():
        assert page == (report.RESULTS / name).read_text(encoding="utf-8"), f"{name}: run report"
    performance = report.PERFORMANCE.read_text(encoding="utf-8")
    for name in everything:
        assert f"benchmarks/results/{name}.md" in performance


def test_the_figure_has_a_curve_of_every_loss_it_names() -> None:
    everything = report.load()
    assert f"benchmarks/results/{report.QUOTED}-overview.png" in README
    assert report.OVERVIEW.keys() <= everything[report.QUOTED]["scaling"].keys()
