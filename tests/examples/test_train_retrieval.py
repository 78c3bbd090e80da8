"""The training program from end to end, on a data set small enough for seconds."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import itm_kernels
import train_retrieval
from dataset import RetrievalData
from objectives import LOSS_NAMES
from scenes import load_scenes
from training import BEST, LAST, Options, Run

PROGRAM = Path(train_retrieval.__file__)
RECALLS = {"1", "5", "10"}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def few_scenes():
    return load_scenes(train=40, dev=20, test=10)


@pytest.fixture
def scenes(monkeypatch, few_scenes):
    monkeypatch.setattr(train_retrieval, "load_scenes", lambda: few_scenes)
    return few_scenes


@pytest.fixture(scope="module")
def precomp(tmp_path_factory):
    """Features that tell 'red' from 'blue' and 'dog' from 'cat', so that something is learned."""
    directory = tmp_path_factory.mktemp("precomp")
    generator = np.random.default_rng(0)
    for name, count in {"train": 24, "dev": 12, "test": 8}.items():
        kinds = np.arange(count) % 4
        features = np.eye(4)[kinds].repeat(3, axis=1) + generator.normal(0, 0.1, (count, 12))
        np.save(directory / f"{name}_ims.npy", features.astype("f4"))
        words = [("red dog", "blue dog", "red cat", "blue cat")[kind] for kind in kinds]
        lines = [f"a {word} number {line}" for word in words for line in range(5)]
        (directory / f"{name}_caps.txt").write_text("\n".join(lines) + "\n")
    return directory


def small(*arguments: object) -> list[str]:
    sizes = ["--dim", "16", "--batch-size", "16", "--threads", "1"]
    return [*sizes, *map(str, arguments)]


def options(**changes) -> Options:
    base = {"data": "scenes", "loss": "info_nce", "text_encoder": "gru", "epochs": 3}
    sizes = {"batch_size": 16, "dim": 16, "learning_rate": 0.002, "warm_up": 0, "seed": 0}
    return Options(**(base | sizes | changes))


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_trains_on_scenes_and_leaves_its_record(loss, scenes, tmp_path, capsys):
    arguments = small("--loss", loss, "--epochs", 2, "--out", tmp_path, "--test")
    assert train_retrieval.main(arguments) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    for row in record["epochs"]:
        assert math.isfinite(row["loss"]) and set(row["dev"]["i2t"]) == RECALLS
    best = record["epochs"][record["best_epoch"] - 1]
    assert record["dev"] == best["dev"], "the weights restored are those of the best epoch"
    assert record["dev"]["rsum"] == max(row["dev"]["rsum"] for row in record["epochs"])
    assert 0 <= record["test"]["rsum"] <= 600
    assert record["loss_time"]["auto_ms"] > 0 and record["loss_time"]["chosen"]
    for picture in ("curves.png", "retrieved.png"):
        assert matplotlib.image.imread(tmp_path / picture).std() > 0.01
    printed = capsys.readouterr().out
    assert printed.count("image to text") == 2 and "loss, forward + backward" in printed


@pytest.mark.parametrize("loss", ["max_of_hinges", "info_nce"])
def test_precomp_features_are_learned(loss, precomp, tmp_path):
    arguments = small("--data", precomp, "--loss", loss, "--epochs", 8, "--lr", 0.01)
    assert train_retrieval.main([*arguments, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    # Three images of a kind: a ranking by chance alone would have R-sum below 330.
    assert record["dev"]["rsum"] > 400
    assert "test" not in record
    assert matplotlib.image.imread(tmp_path / "retrieved.png").std() > 0.01


@pytest.mark.parametrize(("loss", "warm_up"), [("info_cmr", 0), ("itm", 0), ("ito", 0), ("imc", 2)])
def test_an_interrupted_run_ends_with_the_very_same_result(loss, warm_up, few_scenes, tmp_path):
    """These losses draw noise, negatives or dropout, or change on the way."""
    chosen = options(loss=loss, warm_up=warm_up)
    whole = Run(chosen, few_scenes, tmp_path / "whole")
    while not whole.finished:
        whole.train_epoch()
    first = Run(chosen, few_scenes, tmp_path / "parts")
    first.train_epoch()
    # The interruption falls into the second epoch and leaves half a file behind.
    for batch in islice(first.batches(), 3):
        first.objective(first.model, batch, first.generator).backward()
    (tmp_path / "parts" / "last.tmp").write_bytes(b"half")
    torch.rand(7)
    second = Run(chosen, few_scenes, tmp_path / "parts")
    assert second.resume() and len(second.history) == 1
    while not second.finished:
        second.train_epoch()
    assert second.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for checkpoint in (BEST, LAST):
        assert (tmp_path / "parts" / checkpoint).exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--loss", "max_of_hinges"], ["sum_of_hinges", "max_of_hinges"]),
        (["--loss", "imc"], ["imc", "imc"]),
        (["--loss", "sigmoid", "--warm-up", 1], ["sum_of_hinges", "sigmoid"]),
        (["--loss", "max_of_hinges", "--warm-up", 0], ["max_of_hinges", "max_of_hinges"]),
    ],
)
def test_the_first_epochs_may_have_all_negatives(arguments, expected, scenes, tmp_path):
    assert train_retrieval.main(small(*arguments, "--epochs", 2, "--out", tmp_path)) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert [row["trained_with"] for row in record["epochs"]] == expected


def test_ctrl_c_ends_in_one_line_and_resume_goes_on(scenes, tmp_path, capsys, monkeypatch):
    arguments = small("--epochs", 2, "--out", tmp_path)
    train_epoch = Run.train_epoch

    def interrupted(run):
        if run.history:
            raise KeyboardInterrupt
        return train_epoch(run)

    monkeypatch.setattr(Run, "train_epoch", interrupted)
    assert train_retrieval.main(arguments) == 1
    assert "--resume continues" in capsys.readouterr().out
    monkeypatch.setattr(Run, "train_epoch", train_epoch)
    assert train_retrieval.main([*arguments, "--resume"]) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out


def test_resume_without_a_checkpoint_starts_anew(scenes, tmp_path, capsys):
    assert train_retrieval.main(small("--epochs", 1, "--out", tmp_path, "--resume")) == 0
    assert "resumed" not in capsys.readouterr().out


def test_resume_refuses_the_checkpoint_of_other_options(scenes, tmp_path, capsys):
    Run(options(epochs=1), scenes, tmp_path).train_epoch()
    arguments = small("--epochs", 1, "--out", tmp_path, "--loss", "sigmoid", "--seed", 5)
    assert train_retrieval.main([*arguments, "--resume"]) == 2
    told = capsys.readouterr().err
    assert "loss 'info_nce', now 'sigmoid', seed 0, now 5" in told and told.count("\n") == 1


def test_resume_refuses_a_damaged_checkpoint(scenes, tmp_path, capsys):
    (tmp_path / LAST).write_bytes(b"no checkpoint")
    assert train_retrieval.main(small("--out", tmp_path, "--resume")) == 2
    assert "last.pt is no checkpoint; give --no-resume" in capsys.readouterr().err


def test_resume_refuses_a_checkpoint_of_other_data(precomp, tmp_path, capsys, monkeypatch):
    arguments = small("--data", precomp, "--epochs", 1, "--out", tmp_path)
    assert train_retrieval.main(arguments) == 0
    load = train_retrieval.load_precomp

    def narrower(directory):
        data = load(directory)
        splits = (data.train, data.dev, data.test)
        return RetrievalData(*(replace(split, images=split.images[:, :8]) for split in splits))

    monkeypatch.setattr(train_retrieval, "load_precomp", narrower)
    assert train_retrieval.main([*arguments, "--resume"]) == 2
    assert "last.pt does not fit the data" in capsys.readouterr().err


def test_max_minutes_ends_after_the_epoch(scenes, tmp_path, capsys):
    arguments = small("--epochs", 9, "--max-minutes", 1e-9, "--out", tmp_path)
    assert train_retrieval.main(arguments) == 0
    assert "--max-minutes 1e-09 are over" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "history.json").read_text())["epochs"]) == 1


def test_a_loss_that_is_not_finite_ends_in_one_line(scenes, tmp_path, capsys):
    arguments = small("--epochs", 2, "--lr", 1e38, "--out", tmp_path)
    assert train_retrieval.main(arguments) == 1
    assert "try a lower --lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "l2"], "argument --loss: invalid choice: 'l2'"),
        (["--text-encoder", "bert"], "argument --text-encoder: invalid choice: 'bert'"),
        (["--epochs", "0"], "argument --epochs: expected an integer of at least 1, got '0'"),
        (["--epochs", "two"], "argument --epochs: expected an integer of at least 1, got 'two'"),
        (["--batch-size", "1"], "argument --batch-size: expected an integer of at least 2"),
        (["--dim", "12"], "argument --dim: expected a multiple of 8, got '12'"),
        (["--lr", "-1"], "argument --lr: expected a finite number above 0, got '-1'"),
        (["--lr", "nan"], "argument --lr: expected a finite number above 0, got 'nan'"),
        (["--seed", "-1"], "argument --seed: expected an integer from 0 to"),
        (["--threads", "0"], "argument --threads: expected an integer of at least 1"),
        (["--warm-up", "-1"], "argument --warm-up: expected an integer of at least 0, got '-1'"),
        (["--max-minutes", "inf"], "argument --max-minutes: expected a finite number above 0"),
        (["--data", "nowhere"], "nowhere is not a directory"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_wrong_option_ends_with_code_2_and_one_clear_line(arguments, message, capsys, tmp_path):
    try:
        code = train_retrieval.main([*arguments, "--out", str(tmp_path)])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2
    assert message in told.splitlines()[-1]
    assert "Traceback" not in told


def test_an_out_that_is_a_file_ends_with_code_2(scenes, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train_retrieval.main(small("--out", tmp_path / "file")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_the_program_runs_from_any_directory(tmp_path):
    command = [sys.executable, str(PROGRAM), "--help"]
    packages = str(Path(itm_kernels.__file__).parents[1])  # where it is imported from here
    environment = os.environ | {"PYTHONPATH": packages}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in LOSS_NAMES)


def test_an_epoch_shows_every_caption_once_beside_another_of_its_image(few_scenes, tmp_path):
    run = Run(options(batch_size=20), few_scenes, tmp_path)
    shown = []
    for batch in run.batches():
        assert len(set(batch.ids.tolist())) == 20
        for words, other, image in zip(batch.words, batch.other_words, batch.ids, strict=True):
            mine = run.words[5 * image : 5 * image + 5]
            numbers = [
                {row for row in range(5) if torch.equal(mine[row][mine[row] > 0], each[each > 0])}
                for each in (words, other)
            ]
            assert numbers[0] and numbers[1] and numbers[0] != numbers[1]
            shown.append(tuple(words[words > 0].tolist()))
    every = [tuple(row[row > 0].tolist()) for row in run.words]
    assert sorted(shown) == sorted(every)
