"""Two processes of the example train like one process with the same batches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import itm_kernels
import train_over_ranks
import train_retrieval
from small_runs import small

# Processes add in another order, in fp32, and later epochs amplify what differs. Draws of their
# own, or batch statistics of their own, change the losses by more than 1e-3.
TOLERANCE = 1e-5
LOSSES = ("max_of_hinges", "info_nce")  # the first has an epoch of sum_of_hinges


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / "history.json").read_text())["epochs"]]


@pytest.fixture(scope="module")
def two_processes(precomp, tmp_path_factory):
    """Return the folder with the runs of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(precomp, folder / "rank0")
    commands = {loss: small("--loss", loss, "--epochs", 2) for loss in LOSSES}
    parts = small("--loss", "info_nce", "--epochs", 2, "--out", folder / "parts")
    features = small("--data", precomp, "--loss", "info_nce", "--epochs", 2, "--batch-size", 15)
    lists = [
        *([*command, "--out", str(folder / loss)] for loss, command in commands.items()),
        [*parts, "--max-minutes", "1e-9"],
        [*parts, "--resume"],
        [*features, "--out", str(folder / "features")],
        [*features, "--out", str(folder / "chunks"), "--chunk-size", "3"],
        small("--data", folder / "rank{rank}", "--out", folder / "failed"),
    ]
    (folder / "commands.json").write_text(json.dumps(lists))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", train_over_ranks.__file__]
    sources = [Path(module.__file__).parent for module in (train_retrieval, train_over_ranks)]
    paths = os.pathsep.join(map(str, [Path(itm_kernels.__file__).parents[1], *sources]))
    done = subprocess.run(
        [*torchrun, str(folder / "commands.json"), str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_losses_of_every_epoch_are_those_of_one_process(two_processes, scenes, tmp_path):
    folder, _ = two_processes
    for loss in LOSSES:
        arguments = small("--loss", loss, "--epochs", 2, "--out", tmp_path / loss)
        assert train_retrieval.main(arguments) == 0
        assert losses(folder / loss) == pytest.approx(losses(tmp_path / loss), rel=TOLERANCE)


def test_dropout_of_features_and_words_is_that_of_one_process(two_processes, precomp, tmp_path):
    """Shares of 7 and 8 rows."""
    folder, _ = two_processes
    arguments = small("--data", precomp, "--loss", "info_nce", "--epochs", 2, "--batch-size", 15)
    assert train_retrieval.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    one = losses(tmp_path / "one")
    assert losses(folder / "features") == pytest.approx(one, rel=TOLERANCE)
    chunks = [*arguments, "--out", str(tmp_path / "chunks"), "--chunk-size", "4"]
    assert train_retrieval.main(chunks) == 0
    assert losses(tmp_path / "chunks") == pytest.approx(one, rel=TOLERANCE)


def test_chunks_of_the_encoders_change_nothing_over_processes(two_processes):
    """Three chunks of 3, 3 and 1 rows, and of 3, 3 and 2."""
    folder, _ = two_processes
    whole = losses(folder / "features")
    assert losses(folder / "chunks") == pytest.approx(whole, rel=TOLERANCE)


def test_a_resumed_run_ends_with_the_very_same_losses(two_processes):
    folder, done = two_processes
    assert losses(folder / "parts") == losses(folder / "info_nce")
    assert done.stdout.count("resumed after epoch 1") == 1


def test_all_processes_end_if_one_cannot_start(two_processes):
    folder, done = two_processes
    for rank in range(2):
        assert json.loads((folder / f"codes{rank}.json").read_text()) == [0] * 6 + [2]
    assert done.stderr.count("rank1 is not a directory") == 1
    assert not (folder / "failed" / "last.pt").exists()


def test_only_one_process_prints_epochs(two_processes):
    _, done = two_processes
    assert done.stdout.count("epoch   1  loss") == len(LOSSES) + 3
