"""Speed goals on CPUs relative to eager PyTorch, by instruction set, and the measured ratios.

``python -m benchmarks.goals`` prints every row that has a goal. `make bench` measures these rows,
among all others, with the highest instruction set of the machine; `make bench-avx2` with AVX2.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import report, tables

# Keys are those of the results. D = 1024, fp32, forward and backward.
GOALS = {
    "max_of_hinges/N=128,D=1024,float32": {"AVX512": 3.0, "AVX2": 2.5},
    "max_of_hinges/N=4096,D=1024,float32": {"AVX512": 5.0, "AVX2": 5.0},
    "intra_modal/cosine paper sparse/N=4096,D=1024,float32": {"AVX512": 3.0, "AVX2": 3.0},
    "intra_modal/cosine official sparse/N=4096,D=1024,float32": {"AVX512": 3.0, "AVX2": 3.0},
    "intra_modal/l1 paper sparse/N=1024,D=1024,float32": {"AVX512": 20.0, "AVX2": 16.0},
    "intra_modal/l1 paper dense/N=1024,D=1024,float32": {"AVX512": 20.0, "AVX2": 16.0},
    "intra_modal/l1 official defaults/N=1024,D=1024,float32": {"AVX512": 20.0, "AVX2": 16.0},
    "similarity/l1/N=1024,D=1024,float32": {"AVX512": 20.0, "AVX2": 16.0},
}


def table(everything: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of every goal and its measured ratio."""
    lines = []
    for content in everything.values():
        if content["machine"]["device"] != "cpu":
            continue
        chosen = content["machine"]["instruction_set"]
        for key, goals in GOALS.items():
            row = content["rows"].get(key)
            if row is None or chosen not in goals:
                continue
            found = row["contenders"]["eager"]["both"]["ratio"]
            goal = goals[chosen]
            cells = [chosen, key, tables.ratio(row["contenders"]["eager"], "both", brief=False)]
            lines.append([*cells, f"{goal:g}", "yes" if found["median"] >= goal else "no"])
    return tables.table(["instructions", "row", "times eager", "goal", "holds"], lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    print(table(report.load(parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
