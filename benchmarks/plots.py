"""Pictures from the JSON files: scaling, share of the limit, error by precision."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import report

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (the backend is chosen first)

OURS, RIVAL, OTHER = "#1a9850", "#4575b4", "#bdbdbd"
STYLE = {"float32": "o", "bfloat16": "s"}


def save(figure: Figure, path: Path) -> None:
    """Write a picture and forget it."""
    figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)


def tidy(axis: Axes) -> None:
    """Give every picture the same look."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_curve(axis: Axes, curve: dict[str, Any], field: str, colour: str, label: str) -> None:
    """Draw one contender over N; a cross where it ran out of memory."""
    points = [p for p in curve["points"] if p.get(field)]
    rows, values = [p["N"] for p in points], [p[field] for p in points]
    unit = 2**20 if field == "peak_memory" else 1
    axis.plot(rows, [v / unit for v in values], "o-", color=colour, label=label, ms=4)
    for point in curve["points"]:
        if "memory" in point.get("status", "") and values:
            axis.plot(point["N"], values[-1] / unit * 4, "x", color=colour, ms=9, mew=2)


def scaling(name: str, section: dict[str, Any], folder: Path) -> None:
    """Draw time and peak memory against N, log-log, one column per loss."""
    figure, axes = pyplot.subplots(
        2, len(section), figsize=(3.1 * len(section), 6), layout="constrained", squeeze=False
    )
    for column, (loss, record) in enumerate(section.items()):
        names = [key for key in record if key != "D"]
        for axis, field in zip(axes[:, column], ("seconds", "peak_memory"), strict=True):
            for contender in names:
                colour = OURS if contender == "ours" else RIVAL
                label = report.NAMES.get(contender, contender)
                draw_curve(axis, record[contender], field, colour, label)
            axis.set(xscale="log", yscale="log")
            tidy(axis)
        axes[0, column].set_title(f"{loss}, D = {record['D']}", fontsize=9)
        axes[1, column].set_xlabel("N")
    axes[0, 0].set_ylabel("forward + backward, s")
    axes[1, 0].set_ylabel("peak memory, MiB")
    axes[0, 0].legend(frameon=False, title="cross: out of memory")
    save(figure, folder / f"{name}-scaling.png")


def limit(name: str, rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draw the share of the machine's limit that ours and eager reach."""
    figure, axis = pyplot.subplots(figsize=(9, 0.28 * len(rows) + 1), layout="constrained")
    for place, row in enumerate(rows.values()):
        mode = report.mode_of(row)
        for contender, colour, height in (("eager", OTHER, 0.4), ("ours", OURS, 0.8)):
            found = row["contenders"].get(contender, {}).get(mode)
            if found:
                axis.barh(place, found["percent_of_limit"], height, color=colour, alpha=0.8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=7)
    axis.invert_yaxis()
    axis.axvline(100, color="black", lw=1)
    axis.set_xlabel("% of the limit (least work at the rate measured beside it); grey: eager")
    tidy(axis)
    save(figure, folder / f"{name}-limit.png")


def error(name: str, rows: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draw the errors of ours against those of eager, by precision."""
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
        axis.set(xscale="log", yscale="log", xlabel=f"eager, {field.replace('_', ' ')}")
        axis.set_ylabel("ours")
        axis.axline((1e-7, 1e-7), (1e-1, 1e-1), color="black", lw=1)
        axis.legend(frameon=False)
        tidy(axis)
    save(figure, folder / f"{name}-error.png")


def main() -> None:
    """Draw the pictures of every machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    folder = parser.parse_args().results
    for name, content in report.load(folder).items():
        limit(name, content["rows"], folder)
        error(name, content["rows"], folder)
        if content.get("scaling"):
            scaling(name, content["scaling"], folder)


if __name__ == "__main__":
    main()
