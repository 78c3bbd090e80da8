"""Runs that end early, go on, are damaged or stand in the way of another."""

import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

import train_retrieval
from dataset import RetrievalData
from small_runs import options, small
from training import BEST, LAST, RECORD, Run


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
    told = capsys.readouterr().err
    assert "last.pt is not a checkpoint (UnpicklingError" in told and told.count("\n") == 1
    assert told.endswith("; pass --overwrite to start again\n")


def test_resume_refuses_a_checkpoint_of_other_data(precomp, tmp_path, capsys, monkeypatch):
    arguments = small("--data", precomp, "--epochs", 1, "--out", tmp_path)
    assert train_retrieval.main(arguments) == 0
    load = train_retrieval.precomp.load_precomp

    def narrower(directory):
        data = load(directory)
        splits = (data.train, data.dev, data.test)
        return RetrievalData(*(replace(split, images=split.images[:, :8]) for split in splits))

    monkeypatch.setattr(train_retrieval.precomp, "load_precomp", narrower)
    assert train_retrieval.main([*arguments, "--resume"]) == 2
    assert "last.pt does not match the data" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(few_scenes, tmp_path_factory):
    run = Run(options(epochs=1), few_scenes, tmp_path_factory.mktemp("finished"))
    run.train_epoch()
    return run.directory


DAMAGE = {
    "text": lambda path: path.write_text("a note"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "a tensor": lambda path: torch.save(torch.ones(2), path),
    "another program's": lambda path: torch.save({"model": 3, "epoch": 1}, path),
    "another model's": lambda path: torch.save(
        torch.load(path) | {"model": {"weight": torch.ones(2)}}, path
    ),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("checkpoint", [LAST, BEST])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_ends_in_one_line_with_its_path(
    checkpoint, damage, finished, scenes, tmp_path, capsys
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / checkpoint)
    arguments = small("--loss", "info_nce", "--epochs", 1, "--out", tmp_path, "--resume")
    assert train_retrieval.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and str(tmp_path / checkpoint) in told and len(told) < 400
    assert told.endswith("; pass --overwrite to start again\n")


def test_a_run_that_lost_a_checkpoint_is_not_repeated_in_silence(
    finished, scenes, tmp_path, capsys
):
    arguments = small("--loss", "info_nce", "--epochs", 1, "--out", tmp_path, "--resume")
    for missing in (BEST, LAST):
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        (tmp_path / RECORD).write_text("{}")
        (tmp_path / missing).unlink()
        assert train_retrieval.main(arguments) == 2
        assert f"{tmp_path / missing} is missing" in capsys.readouterr().err


def test_a_stop_within_the_first_epoch_is_no_damage(finished, scenes, tmp_path):
    shutil.copy(finished / BEST, tmp_path)
    arguments = small("--loss", "info_nce", "--epochs", 1, "--out", tmp_path, "--resume")
    assert train_retrieval.main(arguments) == 0


def test_the_same_data_under_another_path_resumes(precomp, tmp_path, capsys, monkeypatch):
    arguments = small("--epochs", 1, "--out", tmp_path / "run")
    assert train_retrieval.main([*arguments, "--data", str(precomp)]) == 0
    shutil.copytree(precomp, tmp_path / "moved")
    monkeypatch.chdir(precomp)
    for path in (".", f"{precomp}/../{precomp.name}/", tmp_path / "moved"):
        assert train_retrieval.main([*arguments, "--data", str(path), "--resume"]) == 0
        assert "resumed after epoch 1" in capsys.readouterr().out


def test_a_changed_caption_is_other_data(precomp, tmp_path, capsys):
    shutil.copytree(precomp, tmp_path / "data")
    arguments = small("--data", tmp_path / "data", "--epochs", 1, "--out", tmp_path / "run")
    assert train_retrieval.main(arguments) == 0
    captions = tmp_path / "data" / "dev_caps.txt"
    captions.write_text(captions.read_text().replace("red dog", "dog red", 1))
    assert train_retrieval.main([*arguments, "--resume"]) == 2
    assert "last.pt does not match the data, which has changed" in capsys.readouterr().err


def test_an_old_run_is_replaced_only_when_asked(finished, scenes, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / LAST).read_bytes()
    arguments = small("--loss", "sigmoid", "--epochs", 1, "--out", tmp_path)
    assert train_retrieval.main(arguments) == 2
    told = capsys.readouterr().err
    assert f"--out {tmp_path} holds a run; pass --resume to continue it, --overwrite" in told
    assert (tmp_path / LAST).read_bytes() == before
    assert train_retrieval.main([*arguments, "--overwrite"]) == 0
    assert torch.load(tmp_path / LAST)["options"]["loss"] == "sigmoid"


def test_overwriting_removes_the_old_run_before_the_first_epoch_ends(
    finished, scenes, tmp_path, monkeypatch
):
    def interrupted(run):
        raise KeyboardInterrupt

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Run, "train_epoch", interrupted)
    assert train_retrieval.main(small("--out", tmp_path, "--overwrite")) == 1
    assert not (tmp_path / LAST).exists() and not (tmp_path / BEST).exists()
