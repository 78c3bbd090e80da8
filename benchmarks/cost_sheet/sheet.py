"""The table of all losses: its rows, the committed JSON file, and its Markdown."""

import gc
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cost_sheet import goals, loops, losses, rates, rivals, trace
from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.predict import predict
from benchmarks.results import rounded
from benchmarks.tables import table

FOLDER = Path(__file__).parent.parent / "results" / "predicted"
FILE = FOLDER / "cost-sheet.json"
D = 1024
SIZES, PRECISIONS = (128, 1024, 4096, 32768), ("bf16", "fp32", "tf32")
CORE_SIZES, CORE_PRECISIONS = (128, 4096, 32768), ("bf16", "fp32")
Row = dict[str, Any]
HEAD = "Predicted, not measured"


class Case(NamedTuple):
    """The loss, size and precision of a row."""

    loss: str
    N: int
    precision: str

    @property
    def key(self) -> str:
        """Name of the row in the file."""
        return f"{self.loss}/N={self.N},{self.precision}"


def cases(everything: bool, names: Iterable[str] = losses.LOSSES) -> list[Case]:
    """Return the rows of the given losses: of the whole sheet, or those that CI recomputes."""
    sizes = SIZES if everything else CORE_SIZES
    precisions = PRECISIONS if everything else CORE_PRECISIONS
    return [Case(loss, N, precision) for loss in names for precision in precisions for N in sizes]


def summary(found: trace.Trace) -> Row:
    """Return the entries of one contender in a row."""
    counts = found.counts
    h200, h100 = (predict(counts, machine) for machine in rates.MACHINES)
    products: dict[str, float] = defaultdict(float)
    for count in counts:
        products[count.kind] += count.flop / 1e12
    return {
        "forward ms": 1e3 * predict(found.forward, rates.H200).seconds,
        "ms": 1e3 * h200.seconds,
        "H100 ms": 1e3 * h100.seconds,
        "term": h200.named(),
        "triton": launches(counts, True),
        "aten": launches(counts, False),
        "peak MB": found.peak / 1e6,
        "gradients MB": found.gradients / 1e6,
        "outputs MB": found.outputs / 1e6,
        "TFLOP": {kind: products[kind] for kind in sorted(products) if products[kind]},
        "HBM GB": sum(count.hbm for count in counts) / 1e9,
        "L2 GB": sum(count.l2 for count in counts) / 1e9,
    }


def launches(counts: Iterable[Count], triton: bool) -> int:
    """Return the number of launches of Triton, or of ATen."""
    return sum(count.launches for count in counts if count.triton == triton)


def traced(case: Case, who: str) -> trace.Trace:
    """Return the trace of a loss, or of its eager formula."""
    loss = losses.LOSSES[case.loss]
    gc.collect()  # tensors in cycles of an earlier trace must not be released in this one
    gc.freeze()  # the next collection skips what has survived: modules are 300,000 objects
    with trace.precision_of(case.precision) as dtype:
        return trace.traced(getattr(loss, who), loss.inputs(case.N, D, dtype))


def row_of(case: Case) -> Row:
    """Return the row of a loss: both contenders, and its launch law at the largest size."""
    ours = traced(case, "ours")
    row = {"ours": summary(ours), "eager": summary(traced(case, "eager"))}
    if case.N == loops.SIZES[-1]:
        smaller = [traced(case._replace(N=N), "ours") for N in loops.SIZES[:-1]]
        sequences = [loops.sequence(each.counts) for each in (*smaller, ours)]
        row["launches"] = loops.law(sequences)
    return rounded(row)


def merged(committed: dict[str, Row], rows: dict[str, Row]) -> dict[str, Row]:
    """Return recomputed rows merged into those of the committed sheet that still have a loss."""
    known = {case.key for case in cases(everything=True)}
    return {key: row for key, row in (committed | rows).items() if key in known | set(rows)}


def sheet_of(rows: dict[str, Row]) -> dict[str, Any]:
    """Return the content of the file."""
    return {
        "about": f"{HEAD}: counted on meta tensors, D = {D}, with the rates of rates.py.",
        "exceeds": sorted(goals.exceeding(rows)),
        "goals": [goal._asdict() for goal in goals.held(rows)],
        "rivals": rounded(rivals.table()),
        "rows": {key: rows[key] for key in sorted(rows)},
    }


def written(sheet: dict[str, Any]) -> str:
    """Return the text of the file, with one line per row for readable diffs."""
    lines = []
    for key, value in sheet.items():
        if isinstance(value, dict):
            inner = (f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n }")
        elif isinstance(value, list):
            inner = (f"  {json.dumps(item)}" for item in value)
            lines.append(f" {json.dumps(key)}: [\n" + ",\n".join(inner) + "\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(path: Path = FILE) -> dict[str, Any]:
    """Return the committed sheet, empty without one."""
    if not path.exists():
        return {"exceeds": [], "rows": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def store(sheet: dict[str, Any], path: Path = FILE) -> None:
    """Write the sheet and its Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written(sheet), encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(sheet), encoding="utf-8")


# -- Markdown --------------------------------------------------------------------------------------

COLUMNS = [
    "loss", "N", "forward ms", "ms", "H100 ms", "largest term", "eager ms", "eager / ours",
    "launches", "eager's", "peak MB", "eager's MB",
]  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _line(key: str, row: Row) -> list[str]:
    name, size = key.split("/")
    ours, eager = row["ours"], row["eager"]
    memory = " (out of memory)" if eager["peak MB"] > rates.H200.memory / 1e6 else ""
    return [
        name,
        f"{int(size.split(',')[0].removeprefix('N=')):,}",
        _number(ours["forward ms"]),
        _number(ours["ms"]),
        _number(ours["H100 ms"]),
        ours["term"],
        _number(eager["ms"]) + memory,
        f"{eager['ms'] / ours['ms']:.2f}",
        f"{ours['triton']} + {ours['aten']}",
        str(eager["aten"]),
        _number(ours["peak MB"]),
        _number(eager["peak MB"]),
    ]


def markdown(sheet: dict[str, Any]) -> str:
    """Return the sheet as Markdown."""
    words = [
        f"# {HEAD}: the cost of every loss on an H200",
        "`make cost-sheet UPDATE=1` writes this file. Launches are counted by running the launchers"
        f" and eager PyTorch on meta tensors, D = {D}; times are counts divided by the rates below."
        " Times cover forward and, where it exists, backward, on an H200 unless the column is"
        " labelled H100. Launches are Triton's + ATen's. Peak memory excludes the inputs and"
        " includes gradients, outputs and their gradients.",
    ]
    text = "\n\n".join(words) + "\n"
    for precision in PRECISIONS:
        rows = {key: row for key, row in sheet["rows"].items() if key.endswith(f",{precision}")}
        ordered = sorted(rows, key=_order)
        text += f"\n## {precision}\n\n" + table(COLUMNS, [_line(key, rows[key]) for key in ordered])
    notes = [[name, loss.note] for name, loss in losses.LOSSES.items() if loss.note]
    held = [
        [goal["name"], f"{goal['limit']:g}", _number(goal["predicted"]), _yes(goal["holds"])]
        for goal in sheet["goals"]
    ]
    text += "\n## Goals\n\n" + table(["goal", "limit", "predicted", "holds"], held)
    text += _launched(sheet["rows"])
    text += "\n## Cases in which eager is faster, smaller, or launches less\n\n"
    text += "Launches are compared without the loop over blocks: the fixed ones and one block.\n\n"
    text += "".join(f"- {item}\n" for item in sheet["exceeds"]) or "None.\n"
    text += "\n## Rivals' formulas, from their stated products and launches\n\n"
    others = sheet["rivals"]
    lines = [[name, *(str(cell) for cell in cells.values())] for name, cells in others.items()]
    text += table(["rival", *next(iter(others.values()))], lines)
    text += "\n## Formulas counted as eager\n\n" + table(["loss", "eager"], notes)
    stated = [list(each) for each in rates.STATED]
    text += "\n## Rates\n\n" + table(["rate", "value", "source"], stated)
    return text


def _launched(rows: dict[str, Row]) -> str:
    """Return the section of launches at the largest size, and of launches per block of rows."""
    lines = []
    sizes = tuple(goals.LAUNCHES_HELD)
    held = (key for key, row in rows.items() if key.endswith(sizes) and "launches" in row)
    for key in sorted(held, key=_order):
        name, precision = key.split("/")[0], key.split(",")[-1]
        found = rows[key]["launches"]
        blocks = [
            f"{loop['rows']:,} rows{_times(loop['times'])}: {_listed(loop['launches'])}"
            for loop in found["loops"]
        ]
        launched = str(sum(found["listed"].values()))
        cells = [launched, loops.described(found), "; ".join(blocks), _listed(found["listed"])]
        lines.append([name, precision, *cells])
    N, traced = f"{loops.SIZES[-1]:,}", ", ".join(f"{size:,}" for size in loops.SIZES)
    head = ["loss", "precision", "launches", "formula", "launches of a block", "all launches"]
    return (
        f"\n## Launches at N = {N}\n\nA fixed number plus a number per block of rows, inferred from"
        f" the launches at N = {traced}. `x 2`: two consecutive loops.\n\n"
        f"{table(head, lines)}"
    )


def _listed(launched: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in launched.items())


def _times(times: int) -> str:
    return f" x {times}" if times > 1 else ""


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _order(key: str) -> tuple[int, int]:
    name, size = key.split("/")
    return list(losses.LOSSES).index(name), int(size.split(",")[0].removeprefix("N="))
