"""Figures from the JSON files: scaling, share of the machine's limit, error by precision."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import report, tables

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (the backend is chosen first)

OURS, RIVAL, OTHER = "#1a9850", "#4575b4", "#bdbdbd"
STYLE = {"float32": "o", "bfloat16": "s"}
COLUMNS = 5


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure and release it."""
    figure.savefig(path, dpi=dpi, facecolor="white")
    pyplot.close(figure)


def tidy(axis: Axes) -> None:
    """Give every figure the same look."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_curve(axis: Axes, curve: dict[str, Any], field: str, colour: str, label: str) -> None:
    """Draw one implementation over N; a cross marks the size at which it ran out of memory."""
    points = [p for p in curve["points"] if p.get(field)]
    rows, values = [p["N"] for p in points], [p[field] for p in points]
    unit = 2**20 if field == "peak_memory" else 1
    axis.plot(rows, [v / unit for v in values], "o-", color=colour, label=label, ms=4)
    for point in curve["points"]:
        if "memory" in point.get("status", "") and values:
            axis.plot(point["N"], values[-1] / unit * 4, "x", color=colour, ms=9, mew=2)


def draw_column(column: Any, record: dict[str, Any]) -> None:
    """Draw time and peak memory of one loss on two axes, log-log."""
    for axis, field in zip(column, ("seconds", "peak_memory"), strict=True):
        for contender in (key for key in record if key != "D"):
            colour = OURS if contender == "ours" else RIVAL
            label = tables.NAMES.get(contender, tables.OURS)
            draw_curve(axis, record[contender], field, colour, label)
        axis.set(xscale="log", yscale="log")
        tidy(axis)
    column[1].set_xlabel("pairs in the batch, N")


def label_rows(axes: Any) -> None:
    """Name the two quantities of `draw_column` at the left edge."""
    axes[0].set_ylabel("forward + backward, s")
    axes[1].set_ylabel("peak memory, MiB")


def overview(name: str, section: dict[str, Any], folder: Path) -> None:
    """Draw two losses in four panels, for a page that is 800 pixels wide."""
    chosen = {loss: title for loss, title in report.OVERVIEW.items() if loss in section}
    with pyplot.rc_context({"font.size": 11}):
        figure, axes = pyplot.subplots(
            2, len(chosen), figsize=(8, 5.6), layout="constrained", squeeze=False, sharey="row"
        )
        for column, (loss, title) in enumerate(chosen.items()):
            draw_column(axes[:, column], section[loss])
            axes[0, column].set_title(f"{title}, D = {section[loss]['D']}", fontsize=12)
        label_rows(axes[:, 0])
        axes[0, 0].legend(frameon=False)
        save(figure, folder / f"{name}-overview.png", dpi=200)


def scaling(name: str, section: dict[str, Any], folder: Path) -> None:
    """Draw time and peak memory of every loss over N, five losses to a row."""
    blocks = -(-len(section) // COLUMNS)
    figure, axes = pyplot.subplots(
        2 * blocks, COLUMNS, figsize=(3 * COLUMNS, 5.4 * blocks), layout="constrained"
    )
    for place, (loss, record) in enumerate(section.items()):
        block, column = divmod(place, COLUMNS)
        pair = axes[2 * block : 2 * block + 2, column]
        draw_column(pair, record)
        pair[0].set_title(f"{loss}, D = {record['D']}", fontsize=10)
        if column == 0:
            label_rows(pair)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    axes[0, 0].legend(frameon=False, title="cross: out of memory")
    save(figure, folder / f"{name}-scaling.png")


def limit(name: str, rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draw the share of the machine's limit that our kernels and eager PyTorch reach."""
    figure, axis = pyplot.subplots(figsize=(9, 0.28 * len(rows) + 1), layout="constrained")
    for place, row in enumerate(rows.values()):
        mode = tables.mode_of(row)
        for contender, colour, height in (("ours", OURS, 0.8), ("eager", OTHER, 0.4)):
            found = row["contenders"].get(contender, {}).get(mode)
            if found:
                axis.barh(place, found["percent_of_limit"], height, color=colour, alpha=0.8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=7)
    axis.invert_yaxis()
    axis.axvline(100, color="black", lw=1)
    axis.set_xlabel("% of the limit (least work at the rate measured with it); grey: PyTorch eager")
    tidy(axis)
    save(figure, folder / f"{name}-limit.png")


def error(name: str, rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draw our errors against those of eager PyTorch, by precision."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    for axis, field in zip(axes, ("error", "gradient_error"), strict=True):
        for dtype, marker in STYLE.items():
            pairs = [
                (row["contenders"]["eager"][field], row["contenders"]["ours"][field])
                for row in rows.values()
                if row["dtype"] == dtype and field in row["contenders"].get("eager", {})
            ]
            pairs = [pair for pair in pairs if min(pair) > 0]
            if pairs:
                axis.plot(*zip(*pairs, strict=True), marker, label=dtype, color=OURS, alpha=0.7)
        axis.set(xscale="log", yscale="log", xlabel=f"PyTorch eager, {field.replace('_', ' ')}")
        axis.set_ylabel(tables.OURS)
        axis.axline((1e-7, 1e-7), (1e-1, 1e-1), color="black", lw=1)
        axis.legend(frameon=False)
        tidy(axis)
    save(figure, folder / f"{name}-error.png")


def main() -> None:
    """Draw the figures of every machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    folder = parser.parse_args().results
    for name, content in report.load(folder).items():
        limit(name, content["rows"], folder)
        error(name, content["rows"], folder)
        if content.get("scaling"):
            overview(name, content["scaling"], folder)
            scaling(name, content["scaling"], folder)


if __name__ == "__main__":
    main()
