"""`python -m benchmarks.cost_sheet`: recompute the sheet and compare it with the committed one."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cost_sheet import goals, losses, sheet, small_batch, words_and_regions
from benchmarks.cost_sheet.compare import compare
from benchmarks.tables import table
from tools.native_meta import native_meta


def complaints(rows: dict[str, sheet.Row], committed: dict[str, Any]) -> list[str]:
    """Return failures: growth, new quantities above eager's, launches that follow no blocks."""
    new = [item for item in goals.exceeding(rows) if item not in committed["exceeds"]]
    known = set(goals.broken(committed["rows"]))
    return [
        *goals.grown(rows, committed["rows"]),
        *(f"{item} exceeds eager's" for item in new),
        *(item for item in goals.broken(rows) if item not in known),
    ]


def report(rows: dict[str, sheet.Row], committed: dict[str, Any]) -> None:
    """Print the recomputed rows, the goals, and quantities that no longer exceed eager's."""
    lines = []
    for key, row in rows.items():
        ours, eager = row["ours"], row["eager"]
        cells = [f"{ours['ms']:g}", f"{eager['ms']:g}", f"{ours['triton']} + {ours['aten']}"]
        lines.append([key, *cells, str(eager["aten"]), f"{ours['peak MB']:g}", ours["term"]])
    head = ["row", "ms", "eager ms", "launches", "eager's", "peak MB", "largest term"]
    print(f"{sheet.HEAD}, H200\n\n{table(head, lines)}")
    for goal in goals.held(rows):
        words = "holds" if goal.holds else "DOES NOT HOLD"
        print(f"{goal.name}: {goal.predicted:g}, limit {goal.limit:g}: {words}")
    known = set(goals.exceeding(rows))
    gone = [item for item in committed["exceeds"] if item not in known and f"{_key(item)}" in rows]
    if gone:
        print("no longer exceed eager's, UPDATE=1 removes them:", *gone, sep="\n  ")


def _key(item: str) -> str:
    name, N, rest = item.rsplit(", ", 2)
    return f"{name}/N={N.removeprefix('N = ').replace(',', '')},{rest.split(':')[0]}"


@native_meta()
def main() -> int:
    """Recompute and report the sheet, then check it or write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_sheet", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every size and precision")
    parser.add_argument(
        "--only", nargs="+", metavar="LOSS", choices=losses.LOSSES, help="these losses"
    )
    parser.add_argument(
        "--update", action="store_true", help="write the sheet, with every size of the given losses"
    )
    parser.add_argument("--grow", action="store_true", help="update in spite of complaints")
    parser.add_argument("--compare", type=Path, help="a results file measured on a GPU")
    parser.add_argument("--file", type=Path, default=sheet.FILE)
    options = parser.parse_args()
    committed = sheet.load(options.file)
    if options.compare:
        print(compare(committed, options.compare), end="")
        return 0
    start = time.time()
    chosen = sheet.cases(options.all or options.update, options.only or losses.LOSSES)
    rows = {case.key: sheet.row_of(case) for case in chosen}
    report(rows, committed)
    found = complaints(rows, committed) if committed["rows"] else []
    small = {} if options.only else small_batch.rows()
    found += small_batch.complaints(small)
    of_sets = {} if options.only else words_and_regions.rows()
    found += words_and_regions.complaints(of_sets)
    print(
        f"{len(rows)} rows in {time.time() - start:.0f} s, {len(found)} complaints",
        *found,
        sep="\n",
    )
    if options.update and (options.grow or not found):
        sheet.store(sheet.sheet_of(sheet.merged(committed["rows"], rows)), options.file)
        if small:
            small_batch.FILE.write_text(small_batch.markdown(small), encoding="utf-8")
            words = words_and_regions.markdown(of_sets)
            words_and_regions.FILE.write_text(words, encoding="utf-8")
        return 0
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
