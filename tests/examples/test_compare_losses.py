"""The comparison of losses: its table, and that finished runs are not repeated."""

import json
from pathlib import Path

import numpy as np
import pytest

import compare_losses
import itm_kernels


@pytest.fixture
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(itm_kernels.__file__).parents[1]))
    generator = np.random.default_rng(0)
    for name in ("train", "dev", "test"):
        np.save(tmp_path / f"{name}_ims.npy", generator.random((8, 4)).astype("f4"))
        (tmp_path / f"{name}_caps.txt").write_text("a cat\nthe dog\n" * 20)
    return tmp_path


def test_runs_are_made_once_and_written_as_json_and_markdown(directory, capsys):
    results = directory / "results" / "tiny"
    arguments = ["--data", str(directory), "--losses", "info_nce", "--seeds", "4"]
    arguments += ["--epochs", "1", "--out", str(directory / "runs"), "--results", str(results)]
    assert compare_losses.main(arguments) == 0
    written = json.loads(results.with_suffix(".json").read_text())
    assert [(run["loss"], run["seed"]) for run in written["runs"]] == [("info_nce", 4)]
    table = results.with_suffix(".md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    log = directory / "runs" / "info_nce-4" / "log.txt"
    size = log.stat().st_size
    assert compare_losses.main(arguments) == 0
    assert log.stat().st_size == size > 0


def test_a_failing_run_is_named(directory, capsys):
    (directory / "test_caps.txt").write_text("too few\n")
    arguments = ["--data", str(directory), "--losses", "imc", "--seeds", "3", "--epochs", "1"]
    arguments += ["--out", str(directory / "runs"), "--results", str(directory / "tiny")]
    assert compare_losses.main(arguments) == 1
    assert "imc with seed 3 failed, see" in capsys.readouterr().err
    assert not (directory / "tiny.json").exists()


def test_the_table_gives_means_and_sample_deviations_best_first():
    def run(loss, rsum, recall):
        side = {"1": recall, "5": 50.0}
        return {
            "loss": loss,
            "dev": {"rsum": rsum},
            "test": {"rsum": rsum + 1, "i2t": side, "t2i": side},
            "minutes": 2.0,
        }

    runs = [run("imc", 100.0, 10.0), run("ito", 210.0, 30.0), run("ito", 206.0, 20.0)]
    lines = compare_losses.write_table(runs).splitlines()
    assert lines[0].startswith(
        "| loss | seeds | dev R-sum | test R-sum | test image to text R@1/5 |"
    )
    assert lines[2] == "| ito | 2 | 208.0 ± 2.8 | 209.0 ± 2.8 | 25.0 50.0 | 25.0 50.0 | 2.0 |"
    assert lines[3] == "| imc | 1 | 100.0 | 101.0 | 10.0 50.0 | 10.0 50.0 | 2.0 |"
