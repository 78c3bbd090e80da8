"""The comparison of similarities: rows are made once, and the page has the table of the results."""

import json
import re
from pathlib import Path

import pytest

import compare_similarities
from objectives import LOSS_NAMES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/fine_grained.md"
RESULTS = ROOT / "examples" / "results" / "scenes_similarities.json"


def arguments(path, *more: object) -> list[str]:
    sizes = ["--sizes", "10", "10", "10", "--seeds", "3", "--losses", "info_nce", "--epochs", "1"]
    return [*sizes, "--results", str(path), *map(str, more)]


def test_rows_are_made_once_and_written_as_json_and_markdown(tmp_path, capsys):
    path = tmp_path / "results" / "tiny"
    assert compare_similarities.main(arguments(path, "--similarities", "late")) == 0
    first = json.loads(path.with_suffix(".json").read_text())["runs"]
    assert [(run["similarity"], run["loss"], run["seed"]) for run in first] == [
        ("late", "info_nce", 3)
    ]
    assert first[0]["backend"] in ("native", "reference")
    both = "--similarities", "embedding", "late"
    assert compare_similarities.main(arguments(path, *both)) == 0
    runs = json.loads(path.with_suffix(".json").read_text())["runs"]
    assert [run["similarity"] for run in runs] == ["embedding", "late"]
    assert runs[1] == first[0], "the row is kept, with its time"
    table = path.with_suffix(".md").read_text()
    assert capsys.readouterr().out.endswith(table + "\n")
    with pytest.raises(SystemExit):
        compare_similarities.main(arguments(path, "--epochs", 2))
    assert "has runs with other settings; choose another --results" in capsys.readouterr().err


def test_the_table_gives_means_and_sample_deviations():
    def run(similarity: str, loss: str, rsum: float) -> dict[str, object]:
        return {"similarity": similarity, "loss": loss, "seed": 0, "test": {"rsum": rsum}}

    runs = [run("late", "imc", 210), run("global", "info_nce", 100), run("late", "imc", 206)]
    assert compare_similarities.write_table(runs).splitlines() == [
        "| similarity | imc | info_nce |",
        "| --- | --- | --- |",
        "| global |  | 100.0 |",
        "| late | 208.0 ± 2.8 |  |",
    ]


def test_the_examples_of_the_page_run_in_order(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["scores"].shape == (32, 32) and names["words"].grad.abs().sum() > 0
    assert "R-sum" in capsys.readouterr().out


def test_the_page_has_the_table_of_the_committed_results():
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    runs = found["runs"]
    table = compare_similarities.write_table(runs)
    assert table == RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert table in PAGE.read_text(encoding="utf-8")
    groups: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        assert run["loss"] in LOSS_NAMES
        groups.setdefault((run["similarity"], run["loss"]), set()).add(run["seed"])
    assert all(seeds == {0, 1, 2} for seeds in groups.values())
