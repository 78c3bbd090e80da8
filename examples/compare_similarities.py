"""Train every similarity of regions and words with several losses and write one table.

The data are scenes, whose captions share words and differ in relations. All runs have the same
images, captions and number of epochs. The test split is evaluated once per run, with the weights
that were best on dev. A run whose row is in the results is not repeated.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from compare_losses import spread
from itm_kernels import backends
from records import Options, report_as_json
from scenes import load_scenes
from similarities import OPERATORS, SIMILARITIES
from training import Run

EMBEDDING = "embedding"  # the trainer's default encoder, which has no regions
ENCODED = (EMBEDDING, *SIMILARITIES)
LOSSES = ("max_of_hinges", "imc", "info_nce", "info_cmr")
TRAIN, DEV, TEST = 1000, 100, 200  # images: a run takes less than a minute of one core
BATCH_SIZE, DIM, LEARNING_RATE = 64, 64, 2e-3


def main(arguments: list[str] | None = None) -> int:
    """Make the missing runs; after each, write ``RESULTS.json`` and ``RESULTS.md``.

    Args:
        arguments: command line without the program's name; None reads ``sys.argv``.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="compare_similarities", description=__doc__)
    add = parser.add_argument
    add("--similarities", nargs="+", default=list(ENCODED), choices=ENCODED)
    add("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", type=int, default=4)
    add("--jobs", type=int, default=1, help="number of parallel runs, one thread each")
    add("--sizes", nargs=3, type=int, default=[TRAIN, DEV, TEST], help="images per split")
    add("--results", type=Path, required=True, help="file to write, without .json and .md")
    parsed = parser.parse_args(arguments)
    path = parsed.results.with_suffix(".json")
    settings = {
        "data": "scenes",
        "images": dict(zip(("train", "dev", "test"), parsed.sizes, strict=True)),
        "epochs": parsed.epochs,
        "batch_size": BATCH_SIZE,
        "dim": DIM,
        "learning_rate": LEARNING_RATE,
    }
    runs: list[dict[str, Any]] = []
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        runs = found.pop("runs")
        if found != settings:
            parser.error(f"{path} has runs with other settings; choose another --results")
    made = {(run["similarity"], run["loss"], run["seed"]) for run in runs}
    missing = [
        (similarity, loss, seed)
        for seed in parsed.seeds
        for loss in parsed.losses
        for similarity in parsed.similarities
        if (similarity, loss, seed) not in made
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in _rows(missing, parsed.epochs, parsed.sizes, parsed.jobs):
        runs.append(row)
        runs.sort(key=_order)
        _write(path, json.dumps(settings | {"runs": runs}, indent=1) + "\n")
        print(
            f"{len(runs)} rows: {row['similarity']} {row['loss']} seed {row['seed']} "
            f"R-sum dev {row['dev']['rsum']:.1f} test {row['test']['rsum']:.1f}",
            flush=True,
        )
    table = write_table(runs)
    _write(path.with_suffix(".md"), table)
    print(table)
    return 0


def train(
    similarity: str, loss: str, seed: int, epochs: int, sizes: Iterable[int]
) -> dict[str, Any]:
    """Train one model and evaluate its best epoch.

    Args:
        similarity: one of `ENCODED`.
        loss: a ``--loss`` name.
        seed: seed of all random draws.
        epochs: passes over all captions.
        sizes: images of train, dev and test.

    Returns:
        The row of the results.
    """
    torch.set_num_threads(1)
    number_of = dict(zip(("train", "dev", "test"), sizes, strict=True))
    options = Options(
        data="scenes",
        loss=loss,
        text_encoder="gru",
        tokenizer="words",
        epochs=epochs,
        batch_size=BATCH_SIZE,
        dim=DIM,
        learning_rate=LEARNING_RATE,
        warm_up=int(loss == "max_of_hinges"),  # the default of the command line for scenes
        seed=seed,
        similarity=None if similarity == EMBEDDING else similarity,
    )
    before = os.times().user
    with tempfile.TemporaryDirectory() as directory:
        run = Run(options, load_scenes(**number_of), Path(directory))
        while not run.finished:
            run.train_epoch()
        run.restore_best()
        test = run.evaluate(run.data.test)
    row: dict[str, Any] = {"similarity": similarity, "loss": loss, "seed": seed}
    if similarity in OPERATORS:
        sides = (run.batch_size, run.batch_size)
        row["backend"] = backends.choose(OPERATORS[similarity], "cpu", sides)
    return row | {
        "best_epoch": run.best_epoch,
        "dev": run.history[run.best_epoch - 1]["dev"],
        "test": report_as_json(test),
        "cpu_seconds": round(os.times().user - before, 1),
    }


def write_table(runs: list[dict[str, Any]]) -> str:
    """Return a Markdown table of test R-sums: a row per similarity, a column per loss.

    Args:
        runs: the entry ``runs`` of the JSON file.

    Returns:
        Means over the seeds with their sample standard deviation.
    """
    losses = [loss for loss in LOSSES if any(run["loss"] == loss for run in runs)]
    lines = [f"| similarity | {' | '.join(losses)} |", "| --- |" + " --- |" * len(losses)]
    for similarity in ENCODED:
        cells = []
        for loss in losses:
            chosen = [
                run["test"]["rsum"]
                for run in runs
                if (run["similarity"], run["loss"]) == (similarity, loss)
            ]
            cells.append(spread(chosen) if chosen else "")
        if any(cells):
            lines.append(f"| {similarity} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rows(
    missing: list[tuple[str, str, int]], epochs: int, sizes: list[int], jobs: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the missing runs as they are finished."""
    if jobs == 1:
        yield from (train(*each, epochs, sizes) for each in missing)
        return
    # A forked process would inherit locks of this one's threads.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(train, *each, epochs, sizes) for each in missing]
        yield from (done.result() for done in as_completed(waiting))


def _order(run: dict[str, Any]) -> tuple[int, int, int]:
    return ENCODED.index(run["similarity"]), LOSSES.index(run["loss"]), run["seed"]


def _write(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
