"""The training program from end to end, on a data set small enough for seconds."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

import itm_kernels
import train_retrieval
from objectives import LOSS_NAMES
from small_runs import options, small
from training import RECORD, Run

PROGRAM = Path(train_retrieval.__file__)
RECALLS = {"1", "5", "10"}


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_trains_on_scenes_and_leaves_its_record(loss, scenes, tmp_path, capsys):
    arguments = small("--loss", loss, "--epochs", 2, "--out", tmp_path, "--test")
    assert train_retrieval.main(arguments) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert [row["epoch"] for row in record["epochs"]] == [1, 2]
    first = "sum_of_hinges" if loss == "max_of_hinges" else loss  # its warm-up of one epoch
    assert [row["trained_with"] for row in record["epochs"]] == [first, loss]
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--loss", "sigmoid", "--warm-up", 1], ["sum_of_hinges", "sigmoid"]),
        (["--loss", "max_of_hinges", "--warm-up", 0], ["max_of_hinges", "max_of_hinges"]),
    ],
)
def test_the_first_epochs_may_have_all_negatives(arguments, expected, scenes, tmp_path):
    assert train_retrieval.main(small(*arguments, "--epochs", 2, "--out", tmp_path)) == 0
    record = json.loads((tmp_path / "history.json").read_text())
    assert [row["trained_with"] for row in record["epochs"]] == expected


@pytest.fixture
def chinese(precomp, tmp_path):
    """Every caption differs, and none has a space: all words are unique, characters are not."""
    directory = tmp_path / "chinese"
    shutil.copytree(precomp, directory)
    for path in directory.glob("*_caps.txt"):
        words = {"red": "红", "blue": "蓝", "dog": "狗", "cat": "猫", "number": "号", "a": "一"}
        lines = path.read_text().splitlines()
        lines = ["".join(words.get(word, word) for word in line.split()) for line in lines]
        lines = [f"{line}的{number}" for number, line in enumerate(lines)]
        path.write_text("\n".join(lines), encoding="utf-8")
    return directory


def test_captions_without_spaces_need_characters(chinese, tmp_path, capsys):
    arguments = small("--data", chinese, "--epochs", 2, "--out", tmp_path / "run")
    assert train_retrieval.main(arguments) == 2
    told = capsys.readouterr().err
    assert "none of the 120 different words in the training captions occurs 2 times" in told
    assert "--tokenizer characters" in told and told.count("\n") == 1
    assert train_retrieval.main([*arguments, "--tokenizer", "characters"]) == 0
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert all(math.isfinite(row["loss"]) for row in record["epochs"])


def test_mostly_unknown_captions_are_told(chinese, tmp_path, capsys):
    captions = chinese / "train_caps.txt"
    lines = captions.read_text(encoding="utf-8").splitlines()
    captions.write_text("\n".join(["红 狗"] * 5 + lines[5:]), encoding="utf-8")
    arguments = small("--data", chinese, "--epochs", 1, "--out", tmp_path / "run")
    assert train_retrieval.main(arguments) == 0
    assert "96 % of the training captions have no known word" in capsys.readouterr().err


def test_max_minutes_ends_after_the_epoch(scenes, tmp_path, capsys):
    arguments = small("--epochs", 9, "--max-minutes", 1e-9, "--out", tmp_path)
    assert train_retrieval.main(arguments) == 0
    assert "--max-minutes 1e-09 reached" in capsys.readouterr().out
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
        (["--tokenizer", "bpe"], "argument --tokenizer: invalid choice: 'bpe'"),
        (["--resume", "--overwrite"], "argument --overwrite: not allowed with argument --resume"),
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
    assert "train_caps.txt   UTF-8, one caption per line, 5 N lines" in done.stdout
    options = re.split(r"\n  (?=--)", done.stdout.split("options:")[1].split("Reader of")[0])[1:]
    switches = ("--resume", "--overwrite", "--test")
    assert len(options) == 19
    for option in options:
        assert "default" in option or option.startswith(switches), option


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
