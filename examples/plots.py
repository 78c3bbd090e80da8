"""The figures of a run: curves over the epochs and a page of retrieved examples."""

import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dataset import CAPTIONS_PER_IMAGE, Split
from similarities import Scorer

matplotlib.use("Agg")
from matplotlib import font_manager, pyplot  # noqa: E402 (the backend is chosen first)

# Fonts for Chinese, Japanese and Korean captions, if installed.
_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
_EAST_ASIAN = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "SimHei",
)
pyplot.rcParams["font.family"] = ["DejaVu Sans", *(f for f in _EAST_ASIAN if f in _INSTALLED)]

SHOWN = 5  # candidates shown per query
ROW, LINE, HEADING = 1.4, 0.19, 0.75  # inches
RIGHT, WRONG = "#1a9850", "#bdbdbd"
_COLOURS = {"1": "#4575b4", "5": "#f28e2b", "10": "#59a14f"}


def plot_curves(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw loss, R@K in both directions and R-sum over the epochs.

    Args:
        history: rows of the run's history.
        title: title of the figure.
        path: PNG to write.
    """
    epochs = [row["epoch"] for row in history]
    best = max(history, key=lambda row: row["dev"]["rsum"])
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    figure.suptitle(title)
    # Epochs of a warm-up have another loss, whose scale would hide the curve of this one.
    trained = [row for row in history if row["trained_with"] == history[-1]["trained_with"]]
    axes[0].plot(
        [row["epoch"] for row in trained],
        [row["loss"] for row in trained],
        "o-",
        color="#333333",
        ms=3,
    )
    axes[0].set_title("training loss")
    for axis, direction, name in (
        (axes[1], "i2t", "image to text"),
        (axes[2], "t2i", "text to image"),
    ):
        for k, colour in _COLOURS.items():
            recalls = [row["dev"][direction][k] for row in history]
            axis.plot(epochs, recalls, "o-", color=colour, label=f"R@{k}", ms=3)
        axis.set_title(f"{name}, dev, %")
        axis.set_ylim(0, 102)
        axis.legend(loc="lower right", frameon=False)
    axes[3].plot(epochs, [row["dev"]["rsum"] for row in history], "o-", color="#333333", ms=3)
    axes[3].axvline(best["epoch"], color=RIGHT, lw=1, ls="--")
    axes[3].set_title(f"R-sum, dev; best {best['dev']['rsum']:.1f} in epoch {best['epoch']}")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.set_xlim(0.5, len(history) + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_retrieved(
    split: Split, scores: Scorer, title: str, path: Path, *, queries: int = 5
) -> None:
    """Draw a page of queries and their results, with the correct results marked.

    Args:
        split: source of the queries, which are spread evenly over it.
        scores: scores any of its images and captions.
        title: title of the page.
        path: PNG to write.
        queries: number of queries in each direction.
    """
    chosen = torch.linspace(0, len(split) - 1, min(queries, len(split))).long().tolist()
    shown = min(SHOWN, len(split))
    captions = [
        CAPTIONS_PER_IMAGE * row + number % CAPTIONS_PER_IMAGE for number, row in enumerate(chosen)
    ]
    found_images = scores(slice(None), captions).T.topk(shown).indices.tolist()
    found_texts = scores(chosen, slice(None)).topk(shown).indices.tolist()
    draw = _draw_page if split.has_pixels else _write_page
    figure = draw(split, chosen, captions, found_images, found_texts)
    figure.suptitle(title)
    _save(figure, path)


def _draw_page(
    split: Split,
    chosen: list[int],
    captions: list[int],
    found_images: list[list[int]],
    found_texts: list[list[int]],
) -> Figure:
    """Draw captions with their images on the left, and images with their captions on the right."""
    columns = len(found_images[0])
    widths = [1.7, *[1] * (columns + 1), 4.6]  # in units of the row height
    figure, axes = pyplot.subplots(
        len(chosen),
        len(widths),
        figsize=(ROW * sum(widths), ROW * len(chosen) + HEADING),
        width_ratios=widths,
        squeeze=False,
        gridspec_kw={
            "left": 0.01,
            "right": 0.99,
            "bottom": 0.01,
            "top": 1 - HEADING / (ROW * len(chosen) + HEADING),
            "wspace": 0.06,
            "hspace": 0.1,
        },
    )
    for row, (line, caption, images, texts) in enumerate(
        zip(axes, captions, found_images, found_texts, strict=True)
    ):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        query = textwrap.fill(split.captions[caption], 27)
        line[0].text(0.0, 0.5, query, va="center", fontsize=9.5, transform=line[0].transAxes)
        for axis, found in zip(line[1 : columns + 1], images, strict=True):
            _draw_image(axis, split, found, right=found == caption // CAPTIONS_PER_IMAGE)
        _draw_image(line[columns + 1], split, chosen[row], right=None)
        for place, found in enumerate(texts):
            right = found // CAPTIONS_PER_IMAGE == chosen[row]
            line[-1].text(
                0.0,
                0.92 - 0.21 * place,
                textwrap.shorten(split.captions[found], 125, placeholder=" ..."),
                va="center",
                fontsize=7.5,
                color=RIGHT if right else "#777777",
                weight="bold" if right else "normal",
                transform=line[-1].transAxes,
            )
    headings = {
        0: "caption",
        1: "retrieved images (correct one framed)",
        columns + 1: "image",
        columns + 2: "retrieved captions (correct ones green)",
    }
    for column, heading in headings.items():
        box = axes[0][column].get_position()
        figure.text(box.x0, box.y1 + 0.01, heading, fontsize=11, va="bottom")
    return figure


def _draw_image(axis: Axes, split: Split, row: int, *, right: bool | None) -> None:
    """Draw one image, framed by correctness; None draws no frame (a query)."""
    axis.imshow(split.images[row].transpose(1, 2, 0), interpolation="nearest")
    if right is not None:
        axis.spines[:].set(
            visible=True, color=RIGHT if right else WRONG, linewidth=4 if right else 1
        )


def _write_page(
    split: Split,
    chosen: list[int],
    captions: list[int],
    found_images: list[list[int]],
    found_texts: list[list[int]],
) -> Figure:
    """Write the same page as text, for images that are features only."""
    lines: list[tuple[float, str, str, str]] = []  # indentation, text, colour, weight
    for row, caption, images, texts in zip(
        chosen, captions, found_images, found_texts, strict=True
    ):
        lines.append((0.02, f"Caption: {split.captions[caption]}", "black", "bold"))
        for place, found in enumerate(images, start=1):
            first = f"{place}. {split.names[found]}: {split.captions[CAPTIONS_PER_IMAGE * found]}"
            lines.append((0.035, first, *_style(found == caption // CAPTIONS_PER_IMAGE)))
        lines.append((0.02, f"Image: {split.names[row]}", "black", "bold"))
        for place, found in enumerate(texts, start=1):
            told = f"{place}. {split.captions[found]}"
            lines.append((0.035, told, *_style(found // CAPTIONS_PER_IMAGE == row)))
        lines.append((0.02, "", "black", "normal"))
    height = LINE * len(lines) + HEADING
    figure = pyplot.figure(figsize=(12, height))
    for number, (indentation, told, colour, weight) in enumerate(lines):
        figure.text(
            indentation,
            1 - (HEADING + LINE * number) / height,
            textwrap.shorten(told, 125, placeholder=" ..."),
            color=colour,
            weight=weight,
            fontsize=9,
            va="top",
            parse_math=False,
        )
    return figure


def _style(right: bool) -> tuple[str, str]:
    return (RIGHT, "bold") if right else ("#777777", "normal")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # Characters without an installed font are drawn as boxes; do not warn about each of them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)
