"""The checks of a change: no quantity grows, none exceeds eager's, and the goals hold.

A loss that processes a large batch in blocks launches a few kernels per block. The comparison with
eager counts the fixed launches and those of one block.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.cost_sheet import loops, rates

GROWTH = 1.1
# MB of workspace at N = 32,768 in bf16, beyond inputs, outputs, and the gradients of both.
MORE_MEMORY = 700.0
HELD_SIZES, HELD_PRECISIONS = (4096, 32768), ("bf16", "fp32")
LAUNCHES_HELD = [f"N={loops.SIZES[-1]},{precision}" for precision in HELD_PRECISIONS]
Rows = Mapping[str, Mapping[str, Any]]
# Predicted milliseconds on an H200, forward and backward.
LIMITS = {
    "info_nce/N=32768,bf16": 18.0,
    "sigmoid/N=32768,bf16": 14.0,
    "max of hinges/N=32768,bf16": 5.0,
    "max of hinges/N=32768,fp32": 11.0,
    "bounded cosines/N=32768,bf16": 8.0,
}


class Goal(NamedTuple):
    """A goal and its predicted value."""

    name: str
    limit: float
    predicted: float
    holds: bool


def launches(found: Mapping[str, Any]) -> int:
    """Return the number of launches of a contender."""
    return int(found["triton"] + found["aten"])


def quantities(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the quantities that must not grow."""
    return {
        "forward ms": found["forward ms"],
        "ms": found["ms"],
        "launches": launches(found),
        "peak MB": found["peak MB"],
    }


def grown(rows: Rows, committed: Rows) -> Iterator[str]:
    """Yield quantities that grew by more than a tenth, and rows missing in the committed sheet."""
    for key, row in rows.items():
        if key not in committed:
            yield f"{key} is not in the committed sheet"
            continue
        before = quantities(committed[key]["ours"])
        for name, value in quantities(row["ours"]).items():
            if value > GROWTH * before[name]:
                yield f"{key}: {name} grew from {before[name]:g} to {value:g}"


def exceeding(rows: Rows) -> Iterator[str]:
    """Yield quantities that exceed eager's, at the sizes where none should."""
    for key, row in rows.items():
        name, size = key.split("/")
        N, precision = size.removeprefix("N=").split(",")
        if int(N) not in HELD_SIZES or precision not in HELD_PRECISIONS:
            continue
        ours, eager = quantities(row["ours"]), quantities(row["eager"])
        law = rows.get(f"{name}/N={loops.SIZES[-1]},{precision}", {}).get("launches")
        ours["launches"] = loops.net(law, int(N), int(ours["launches"]))
        impossible = row["eager"]["peak MB"] > rates.H200.memory / 1e6
        for quantity in ("ms", "launches", "peak MB"):
            if ours[quantity] > eager[quantity] and not (impossible and quantity == "ms"):
                yield f"{name}, N = {int(N):,}, {precision}: {quantity}"


def held(rows: Rows) -> list[Goal]:
    """Return the goals whose rows are in the sheet."""
    found = []
    for key, limit in LIMITS.items():
        if key in rows:
            ms = rows[key]["ours"]["ms"]
            found.append(Goal(f"{key}: ms", limit, ms, ms <= limit))
    for key in sorted(rows):
        if key.endswith("N=32768,bf16"):
            ours = rows[key]["ours"]
            more = ours["peak MB"] - ours["gradients MB"] - ours["outputs MB"]
            name = f"{key}: MB beyond inputs, outputs, and the gradients of both"
            found.append(Goal(name, MORE_MEMORY, more, more <= MORE_MEMORY))
    for key in sorted(rows):
        if key.split("/")[1] in LAUNCHES_HELD and "launches" in rows[key]:
            law, many = rows[key]["launches"], launches(rows[key]["ours"])
            name = f"{key}: launches, {loops.described(law)}"
            limit = law["from smaller"]
            found.append(Goal(name, limit, many, not law["breaks"] and many <= limit))
    return found


def broken(rows: Rows) -> Iterator[str]:
    """Yield the rows whose launches follow no blocks."""
    for key, row in rows.items():
        if row.get("launches", {}).get("breaks"):
            yield f"{key}: launches {loops.described(row['launches'])}"
