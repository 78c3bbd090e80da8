"""Train a small dual encoder with a loss of `itm_kernels` and show what it retrieves.

Without options it learns the built-in scenes in about a minute. A run writes its files to
``--out``: ``history.json``, ``curves.png``, ``retrieved.png``, ``best.pt`` and ``last.pt``.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

import precomp
from dataset import RetrievalData
from objectives import LOSS_NAMES
from plots import plot_curves, plot_retrieved
from scenes import load_scenes
from timing import LossTime, time_loss
from training import BEST, RECORD, WARM_UP_LOSS, Options, Run, report_as_json
from vocabulary import TOKENIZERS

SCENES = "scenes"
TIMED_BATCHES = 5
MOST_UNREAD = 0.5  # share of captions without a known word; 0 for Flickr8k
Number = TypeVar("Number", int, float)


def main(arguments: list[str] | None = None) -> int:
    """Train, evaluate, draw, and print the tables.

    Args:
        arguments: command line without the program's name; None reads ``sys.argv``.

    Returns:
        0; 1 when training stopped early; 2 for an invalid option or file.
    """
    parsed = _parse(arguments)
    torch.set_num_threads(parsed.threads)
    try:
        data = _load(parsed.data)
        run = Run(_options(parsed, data), data, Path(parsed.out))
        resumed = parsed.resume and run.resume()
        if run.exists() and not parsed.resume:
            _clear(run, asked=parsed.overwrite)
    except (ValueError, OSError) as error:
        print(f"train_retrieval: {error}", file=sys.stderr)
        return 2
    if run.unread > MOST_UNREAD:
        print(
            f"train_retrieval: {100 * run.unread:.0f} % of the training captions have no known "
            "word; if words have no spaces between them, try --tokenizer characters",
            file=sys.stderr,
        )
    if resumed:
        print(f"resumed after epoch {len(run.history)}")
    try:
        _train(run, parsed.max_minutes)
        _report(run, with_test=parsed.test)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command with --resume continues after the last epoch")
        return 1
    except (FloatingPointError, ValueError) as error:
        print(f"train_retrieval: {error}", file=sys.stderr)
        return 1
    return 0


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
        recalls = "  ".join(
            f"{direction} "
            + " ".join(f"{recall:5.1f}" for recall in row["dev"][direction].values())
            for direction in ("i2t", "t2i")
        )
        print(
            f"epoch {row['epoch']:>3}  loss {row['loss']:9.4f}  R@1/5/10 dev  {recalls}"
            f"  R-sum {row['dev']['rsum']:6.1f}  {run.seconds[-1]:5.1f} s",
            flush=True,
        )
        if max_minutes is not None and time.monotonic() - start > 60 * max_minutes:
            print(f"stopped: --max-minutes {max_minutes:g} reached")
            return


def _report(run: Run, *, with_test: bool) -> None:
    """Print the tables of the best epoch; write ``history.json`` and the figures."""
    options, out = run.options, run.directory
    run.restore_best()
    image, text = run.embed(run.data.dev)
    title = f"{options.loss} on {Path(options.data).name}, best epoch {run.best_epoch}"
    plot_curves(run.history, f"{options.loss} on {Path(options.data).name}", out / "curves.png")
    plot_retrieved(run.data.dev, image, text, f"{title}, dev", out / "retrieved.png")
    record = {
        "options": asdict(options),
        "epochs": run.history,
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
        "threads": torch.get_num_threads(),
    }
    splits = {"dev": run.data.dev} | ({"test": run.data.test} if with_test else {})
    for name, split in splits.items():
        report = run.evaluate(split)
        record[name] = report_as_json(report)
        print(f"\n{name}, {len(split)} images, weights of epoch {run.best_epoch} (best on dev)")
        print(report)
    timed = _time(run)
    record["loss_time"] = timed.as_json()
    threads = f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    print(f"\n{options.loss}, batches of {run.batch_size} x {options.dim}, {threads}")
    print(timed)
    unfinished = out / f"{RECORD}.tmp"
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, out / RECORD)
    print(f"\nwrote {RECORD}, curves.png, retrieved.png and {BEST} to {out}")


def _time(run: Run) -> LossTime:
    run.model.train()
    with torch.no_grad():
        batches = [
            (run.objective.encode(run.model, batch), batch.ids)
            for batch in islice(run.batches(), TIMED_BATCHES)
        ]
    return time_loss(run.options.loss, run.objective, run.model.widths, batches)


def _load(data: str) -> RetrievalData:
    return load_scenes() if data == SCENES else precomp.load_precomp(Path(data))


def _options(parsed: argparse.Namespace, data: RetrievalData) -> Options:
    """Set defaults that depend on the data: word order matters in scenes, hardly elsewhere."""
    pixels = data.train.has_pixels
    # From a random start the hardest negatives of scenes collapse all embeddings for good: dev
    # R-sum 256 after 8 epochs, 423 with a first epoch on all negatives. The intra-modal part of imc
    # prevents the collapse (533; 422 with such an epoch).
    collapses = pixels and parsed.loss == "max_of_hinges"
    return Options(
        data=parsed.data,
        loss=parsed.loss,
        text_encoder=parsed.text_encoder or ("gru" if pixels else "bow"),
        tokenizer=parsed.tokenizer,
        epochs=parsed.epochs,
        batch_size=parsed.batch_size or (128 if pixels else 256),
        dim=parsed.dim or (256 if pixels else 512),
        learning_rate=parsed.lr,
        warm_up=int(collapses) if parsed.warm_up is None else parsed.warm_up,
        seed=parsed.seed,
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_retrieval",
        description=__doc__,
        epilog=precomp.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--data",
        default=SCENES,
        metavar="DIR",
        help="directory in the precomp layout (below), or 'scenes', rendered by this program\n"
        "(default: %(default)s)",
    )
    add("--loss", default="imc", choices=LOSS_NAMES, help="training loss (default: imc)")
    add("--text-encoder", choices=("bow", "gru"), help="default: gru for scenes, else bow")
    add(
        "--tokenizer",
        default="words",
        choices=TOKENIZERS,
        help="characters: for captions without spaces between words (default: words)",
    )
    add("--epochs", type=_positive_integer, default=8, help="passes over all captions (default: 8)")
    add(
        "--batch-size",
        type=_batch_size,
        help="images in a batch (default: 128 for scenes, else 256)",
    )
    add(
        "--dim",
        type=_dim,
        help="size of the embedding, a multiple of 8 (default: 256 for scenes, else 512)",
    )
    add("--lr", type=_positive_number, default=2e-3, help="highest learning rate (default: 0.002)")
    add(
        "--warm-up",
        type=_natural_number,
        metavar="EPOCHS",
        help=f"first epochs with {WARM_UP_LOSS} instead (default: 1 for max_of_hinges on scenes,\n"
        "which collapses without it; else 0)",
    )
    add("--seed", type=_seed, default=0, help="seed of all random draws (default: 0)")
    # Operations this small gain little from more threads, and lose much on a shared machine.
    add("--threads", type=_positive_integer, default=1, help="CPU threads (default: 1)")
    add(
        "--out",
        default="runs/latest",
        metavar="DIR",
        help="folder of the run (default: %(default)s)",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run in --out, with the result of an uninterrupted one",
    )
    kept.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    add(
        "--max-minutes",
        type=_positive_number,
        metavar="MINUTES",
        help="stop after the epoch in which this time is reached (default: no limit)",
    )
    add("--test", action="store_true", help="also evaluate the test split, once, at the end")
    return parser.parse_args(arguments)


def _positive_integer(text: str) -> int:
    return _checked(text, int, lambda value: value >= 1, "an integer of at least 1")


def _natural_number(text: str) -> int:
    return _checked(text, int, lambda value: value >= 0, "an integer of at least 0")


def _batch_size(text: str) -> int:
    return _checked(text, int, lambda value: value >= 2, "an integer of at least 2")


def _dim(text: str) -> int:
    return _checked(text, int, lambda value: value >= 8 and value % 8 == 0, "a multiple of 8")


def _seed(text: str) -> int:
    return _checked(text, int, lambda value: 0 <= value < 2**63, "an integer from 0 to 2**63 - 1")


def _positive_number(text: str) -> float:
    return _checked(text, float, lambda value: 0 < value < float("inf"), "a finite number above 0")


def _checked(
    text: str, kind: Callable[[str], Number], accepts: Callable[[Number], bool], expected: str
) -> Number:
    try:
        value = kind(text)
        if accepts(value):
            return value
    except ValueError:
        pass  # reported below
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


if __name__ == "__main__":
    sys.exit(main())
