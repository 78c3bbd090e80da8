"""Write summary.md: passed and failed checks, error messages, and times."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.report import page
from benchmarks.tables import table
from tools.gpu_check.journal import Journal

SHOWN = 60  # failures
COMPARED = ("values", "core")  # steps that compare results with fp64
Lines = dict[str, dict[str, Any]]


def part(lines: Lines, step: str) -> Lines:
    """Return a step's results, without the step's name in their keys."""
    prefix = f"{step}/"
    return {key.removeprefix(prefix): v for key, v in lines.items() if key.startswith(prefix)}


def counts(lines: Lines) -> str:
    """Return how many checks of every step passed, failed, were skipped or stopped."""
    states = ("passed", "failed", "skipped", "stopped")
    steps = dict.fromkeys(key.split("/")[0] for key in lines)
    rows = []
    for step in steps:
        found = Counter(line["status"] for line in part(lines, step).values())
        rows.append([step, *(str(found[state]) for state in states)])
    return table(["step", *states], rows)


def failures(lines: Lines) -> str:
    """Return the first lines of every error, with equal errors of a step grouped."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, line in lines.items():
        if line["status"] == "failed":
            step, name = key.split("/", 1)
            words = line["error"]
            if step in COMPARED and "times the allowed error" in words:
                words = "beyond the error rule"
            groups.setdefault((step, words), []).append(name)
    parts = []
    for (step, words), names in list(groups.items())[:SHOWN]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts += [f"- **{step}**: {'; '.join(names[:3])}{more}\n"]
        parts += [f"  `{text.strip()}`\n" for text in words.splitlines()[:4]]
    rest = len(groups) - SHOWN
    return "".join(parts) + (f"\n{rest} more kinds of error.\n" if rest > 0 else "")


def worst_values(lines: Lines) -> str:
    """Return the largest error over the allowed one for every operation and precision."""
    worst: dict[tuple[str, str, str], tuple[float, str]] = {}
    compared = part(lines, COMPARED[0]) | part(lines, COMPARED[1])
    for key, line in compared.items():
        if line["status"] == "passed" and key.count("/") == 3:
            backend, name, precision, size = key.split("/")
            group = (backend, name, precision)
            worst[group] = max(worst.get(group, (0.0, "")), (line.get("worst", 0.0), size))
    rows = [[*group, f"{ratio:.2f}", size] for group, (ratio, size) in worst.items() if ratio > 0.5]
    if not rows:
        return "No passed check exceeded half of the allowed error.\n"
    head = ["backend", "operation", "precision", "error / allowed error (above half only)", "at"]
    return table(head, sorted(rows, key=lambda row: -float(row[3])))


def ratio(value: Any) -> str:
    """Return a contender's time over ours, with backward if it has one, or its status."""
    if isinstance(value, dict):
        return f"{value.get('both', value['forward']):.2f}"
    return str(value or "")


def speed(lines: Lines) -> str:
    """Return the table of times and ratios."""
    others = (
        "eager",
        "compile",
        "open_clip",
        "metric_learning",
        "keops",
        "inf_cl",
        "memeff",
        "siglip_kernel",
    )
    rows = []
    # A row that was measured again with more contenders is shown once.
    for key, line in (part(lines, "bench") | part(lines, "rivals")).items():
        if "forward ms" not in line:
            continue
        packages = [f"{name} {ratio(line[name])}" for name in others[2:] if name in line]
        packages = [text for text in packages if "not installed" not in text]
        modes = [f"{mode} ms" for mode in ("forward", "backward", "both")]
        times = [f"{line[mode]:.3g}" if mode in line else "" for mode in modes]
        rate = [f"{line['TFLOP/s']:.3g}", f"{line['% of product']:.0f} %"]
        rivals = [ratio(line.get(name, "")) for name in others[:2]]
        peaks = [f"{line.get('peak MiB', 0):,.0f}"]
        peaks += [f"{line['eager']['peak MiB']:,.0f}" if isinstance(line["eager"], dict) else ""]
        chosen = "+".join(sorted(set(line["backends"].values())))
        hosts = [f"{line.get('host ms', 0):.3g}"]
        hosts += [f"{line['eager'].get('host ms', 0):.3g}" if len(peaks) > 1 and peaks[1] else ""]
        rows.append([key, chosen, *times, *rate, *rivals, *peaks, *hosts, "; ".join(packages)])
    if not rows:
        return ""
    head = ["loss / size", "backend", "forward ms", "backward ms", "both ms", "TFLOP/s"]
    head += ["of a product", "eager, times longer", "torch.compile, times longer"]
    head += ["peak MiB", "eager's peak MiB", "host ms", "eager's host ms", "packages"]
    return "## Speed\n\n" + table(head, rows)


def tiles(lines: Lines) -> tuple[str, list[dict[str, Any]]]:
    """Return the tiles that are faster than those of the tile table, and all measurements."""
    found = [
        {"case": key, **{name: line[name] for name in line if name in TUNED}}
        for key, line in part(lines, "tune").items()
        if "table ms" in line
    ]
    rows = [
        [f["case"], *f["table"], f"{f['table ms']:.3g}", f["best"], f"{f['gain']:.2f}"]
        for f in found
        if f.get("gain", 0) > 1.03
    ]
    if not found:
        return "", []
    head = ["kernel / precision / size", "table", "ms", "best", "times faster"]
    return "## Tiles more than 3 % faster than the tile table\n\n" + table(head, rows), found


TUNED = ("table", "table ms", "best", "best ms", "gain", "all")


def facts(lines: Lines) -> str:
    """Return the facts about the machine as a list."""
    hidden = ("key", "status", "time", "seconds", "digest", "run", "device")
    return "".join(
        f"- {key}: " + ", ".join(f"{k} {formatted(v)}" for k, v in line.items() if k not in hidden)
        + "\n"
        for key, line in part(lines, "facts").items()
    )  # fmt: skip


def formatted(value: Any) -> str:
    """Return a float with four digits, and any other value as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(out: Path) -> int:
    """Write summary.md, tune.json and the benchmarks' tables; return the number of failures."""
    lines = Journal(out / "records.jsonl").latest()
    tile_rows, tuned = tiles(lines)
    if tuned:
        (out / "tune.json").write_text(json.dumps(tuned, indent=1) + "\n", encoding="utf-8")
    for path in benchmark_files(out):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("rows"):
            path.with_suffix(".md").write_text(page(path.stem, content), encoding="utf-8")
    bad = sum(line["status"] == "failed" for line in lines.values())
    parts = ["# GPU check\n", facts(lines), counts(lines), speed(lines), tile_rows]
    parts += ["## Failures\n\n" + failures(lines)] if bad else []
    if any(part(lines, step) for step in COMPARED):
        parts.append("## Errors against fp64\n\n" + worst_values(lines))
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.md").write_text("\n".join(filter(None, parts)), encoding="utf-8")
    return bad


def benchmark_files(out: Path) -> Iterable[Path]:
    """Return the JSON files that the benchmarks wrote."""
    return (path for path in sorted(out.glob("c*-*.json")))
