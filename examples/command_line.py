"""The command line of the training program."""

import argparse
from collections.abc import Callable
from typing import TypeVar

import precomp
from dataset import RetrievalData
from objectives import LOSS_NAMES
from records import Options
from similarities import SIMILARITIES
from training import WARM_UP_LOSS
from vocabulary import TOKENIZERS

SCENES = "scenes"
REGIONS = "regions"
Number = TypeVar("Number", int, float)


def read_options(parsed: argparse.Namespace, data: RetrievalData) -> Options:
    """Return the options of a run, with defaults that depend on the data.

    Word order matters in scenes, hardly elsewhere.

    Raises:
        ValueError: a similarity is given without the encoder that it needs.
    """
    similarity = parsed.similarity
    if parsed.encoder == REGIONS:
        similarity = similarity or "scan_t2i"
    elif similarity is not None:
        raise ValueError(f"--similarity {similarity} compares regions; pass --encoder regions")
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
        chunk_size=parsed.chunk_size,
        similarity=similarity,
    )


def parse(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    """Read the command line; None reads ``sys.argv``."""
    parser = argparse.ArgumentParser(
        prog="train_retrieval",
        description=description,
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
    add(
        "--encoder",
        default="embedding",
        choices=("embedding", REGIONS),
        help="one embedding per image and caption, or one per region (scenes: cell of a grid) and\n"
        "word (default: %(default)s)",
    )
    add(
        "--similarity",
        choices=SIMILARITIES,
        help="of regions and words: cosine of their means, SCAN's cross attention from words to\n"
        "regions or the reverse, or late interaction, the mean of both directions, as FILIP\n"
        "(default: scan_t2i with --encoder regions)",
    )
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
        help="images in a batch, over all processes (default: 128 for scenes, else 256)",
    )
    add(
        "--chunk-size",
        type=_positive_integer,
        metavar="ROWS",
        help="rows that the encoders read at once, which bounds their memory; batch normalisation\n"
        "of pixels uses the statistics of a chunk (default: all rows of a process)",
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
