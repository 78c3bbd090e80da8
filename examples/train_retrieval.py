"""Train a small dual encoder with a loss of `itm_kernels` and show what it retrieves.

Without options it learns the built-in scenes in about a minute. A run writes its files to
``--out``: ``history.json``, ``curves.png``, ``retrieved.png``, ``best.pt`` and ``last.pt``.

The same command under ``torchrun --nproc-per-node N`` spreads each batch over N processes, with the
losses and gradients of one process. The first process writes all files.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import precomp
from command_line import SCENES, parse, read_options
from dataset import RetrievalData
from plots import plot_curves, plot_retrieved
from process_group import Processes, joined
from records import report_as_json
from scenes import load_scenes
from similarities import is_fine_grained
from timing import LossTime, time_loss
from training import BEST, RECORD, Run

TIMED_BATCHES = 5
TIMED_ROWS = 32  # of a batch whose regions and words are compared
MOST_UNREAD = 0.5  # share of captions without a known word; 0 for Flickr8k


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, draw, and print the tables.

    Args:
        arguments: command line without the program's name; None reads ``sys.argv``.

    Returns:
        0; 1 when training stopped early; 2 for an invalid option or file.
    """
    parsed = parse(arguments, __doc__)
    torch.set_num_threads(parsed.threads)
    with joined() as processes:
        return _run(parsed, processes)


def _run(parsed: argparse.Namespace, processes: Processes) -> int:
    run, error = None, None
    try:
        run = _build(parsed, processes)
    except (ValueError, OSError) as raised:
        error = str(raised)
    # All end if one cannot start.
    epochs = None if run is None else len(run.history)
    found = processes.all((error, epochs))
    error = next((other for other, _ in found if other is not None), error)
    if error is None and any(other != epochs for _, other in found):
        error = "--resume: the processes find different checkpoints; --out must be a shared folder"
    if run is None or error is not None:
        _tell(processes, error)
        return 2
    if run.unread > MOST_UNREAD:
        _tell(
            processes,
            f"{100 * run.unread:.0f} % of the training captions have no known word; if words have "
            "no spaces between them, try --tokenizer characters",
        )
    if run.history and processes.writes:
        print(f"resumed after epoch {len(run.history)}")
    try:
        _train(run, parsed.max_minutes)
        if processes.writes:
            with processes.alone():
                _report(run, with_test=parsed.test)
    except KeyboardInterrupt:
        if processes.writes:
            print("\ninterrupted: the same command with --resume continues after the last epoch")
        return 1
    except (FloatingPointError, ValueError) as raised:
        where = f", process {processes.rank} of {processes.size}" if processes.size > 1 else ""
        print(f"train_retrieval{where}: {raised}", file=sys.stderr)
        return 1
    return 0


def _build(parsed: argparse.Namespace, processes: Processes) -> Run:
    data = _load(parsed.data)
    run = Run(read_options(parsed, data), data, Path(parsed.out), processes)
    if parsed.resume:
        run.resume()
    elif run.exists():
        _clear(run, asked=parsed.overwrite)
    return run


def _tell(processes: Processes, message: str | None) -> None:
    if processes.writes:
        print(f"train_retrieval: {message}", file=sys.stderr)


def _clear(run: Run, *, asked: bool) -> None:
    if not asked:
        raise ValueError(
            f"--out {run.directory} holds a run; pass --resume to continue it, --overwrite to "
            "replace it, or another --out"
        )
    run.clear()


def _train(run: Run, max_minutes: float | None) -> None:
    start = time.monotonic()
    while not run.finished:
        row = run.train_epoch()
        late = max_minutes is not None and time.monotonic() - start > 60 * max_minutes
        if run.processes.writes:
            _print_epoch(row, run.seconds[-1])
        if run.processes.all(late)[0]:  # as the first process says
            if run.processes.writes:
                print(f"stopped: --max-minutes {max_minutes:g} reached")
            return


def _print_epoch(row: dict[str, Any], seconds: float) -> None:
    recalls = "  ".join(
        f"{direction} " + " ".join(f"{recall:5.1f}" for recall in row["dev"][direction].values())
        for direction in ("i2t", "t2i")
    )
    print(
        f"epoch {row['epoch']:>3}  loss {row['loss']:9.4f}  R@1/5/10 dev  {recalls}"
        f"  R-sum {row['dev']['rsum']:6.1f}  {seconds:5.1f} s",
        flush=True,
    )


def _report(run: Run, *, with_test: bool) -> None:
    """Print the tables of the best epoch; write ``history.json`` and the figures."""
    options, out = run.options, run.directory
    run.restore_best()
    loss, dev = options.loss, run.data.dev
    if options.similarity is not None:
        loss = f"{loss}, {options.similarity} similarity"
    title = f"{loss} on {Path(options.data).name}"
    plot_curves(run.history, title, out / "curves.png")
    title = f"{title}, best epoch {run.best_epoch}, dev"
    plot_retrieved(dev, run.scores(dev), title, out / "retrieved.png")
    record = {
        "options": asdict(options),
        "epochs": run.history,
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
        "threads": torch.get_num_threads(),
    }
    splits = {"dev": dev} | ({"test": run.data.test} if with_test else {})
    for name, split in splits.items():
        report = run.evaluate(split)
        record[name] = report_as_json(report)
        print(f"\n{name}, {len(split)} images, weights of epoch {run.best_epoch} (best on dev)")
        print(report)
    timed = _time(run)
    record["loss_time"] = timed.as_json()
    threads = f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    print(f"\n{loss}, batches of {_timed_rows(run)} x {options.dim}, {threads}")
    print(timed)
    unfinished = out / f"{RECORD}.tmp"
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, out / RECORD)
    print(f"\nwrote {RECORD}, curves.png, retrieved.png and {BEST} to {out}")


def _timed_rows(run: Run) -> int:
    whole = not is_fine_grained(run.options.similarity)
    return run.batch_size if whole else min(run.batch_size, TIMED_ROWS)


def _time(run: Run) -> LossTime:
    similarity = run.options.similarity
    # The reference stores the attended vectors of all pairs, so it gets a part of a batch.
    small, rows = is_fine_grained(similarity), _timed_rows(run)
    run.model.train()
    with torch.no_grad():
        batches = [
            (run.objective.encode(run.model, batch), batch.ids)
            for batch in islice(run.batches(), 1 if small else TIMED_BATCHES)
        ]
    if small:
        batches = [(tuple(part[:rows] for part in parts), ids[:rows]) for parts, ids in batches]
    return time_loss(
        run.options.loss,
        run.objective,
        run.model.widths,
        batches,
        similarity=similarity,
        rounds=3 if small else 10,
    )


def _load(data: str) -> RetrievalData:
    return load_scenes() if data == SCENES else precomp.load_precomp(Path(data))


if __name__ == "__main__":
    sys.exit(main())
