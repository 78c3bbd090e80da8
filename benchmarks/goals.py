"""Speed goals on CPUs relative to other implementations, and the measured ratios.

``python -m benchmarks.goals`` prints every row that has a goal. `make bench` measures these rows,
among all others, with the highest instruction set of the machine; `make bench-avx2` with AVX2.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import report, tables

# By row (keys are those of the results), contender and instruction set. D = 1024, fp32, forward and
# backward.
GOALS = {
    "max_of_hinges/N=128,D=1024,float32": {"eager": {"AVX512": 3.0, "AVX2": 2.5}},
    "max_of_hinges/N=4096,D=1024,float32": {"eager": {"AVX512": 5.0, "AVX2": 5.0}},
    "intra_modal/cosine paper sparse/N=4096,D=1024,float32": {
        "eager": {"AVX512": 3.0, "AVX2": 3.0}
    },
    "intra_modal/cosine official sparse/N=4096,D=1024,float32": {
        "eager": {"AVX512": 3.0, "AVX2": 3.0}
    },
    "intra_modal/l1 paper sparse/N=1024,D=1024,float32": {"eager": {"AVX512": 20.0, "AVX2": 16.0}},
    "intra_modal/l1 paper dense/N=1024,D=1024,float32": {"eager": {"AVX512": 20.0, "AVX2": 16.0}},
    "intra_modal/l1 official defaults/N=1024,D=1024,float32": {
        "eager": {"AVX512": 20.0, "AVX2": 16.0}
    },
    "similarity/l1/N=1024,D=1024,float32": {"eager": {"AVX512": 20.0, "AVX2": 16.0}},
    # "eager" forms all attended vectors.
    "cross_attention/R=36 L=20/N=128,D=1024,float32": {
        "scan": {"AVX512": 15.0},
        "gram": {"AVX512": 1.5},
        "eager": {"AVX512": 4.0},
    },
    # A step of SCAN's training: few scores have a gradient.
    "scan max_violation/R=36 L=20/N=128,D=1024,float32": {
        "scan": {"AVX512": 15.0},
        "gram": {"AVX512": 1.5},
        "eager": {"AVX512": 4.0},
    },
    "late_interaction/R=36 L=20/N=128,D=1024,float32": {"eager": {"AVX512": 2.0}},
}


def of(key: str, instruction_set: str) -> dict[str, float]:
    """Return a row's goals with an instruction set: the least ratio by contender."""
    row = GOALS.get(key, {})
    return {name: sets[instruction_set] for name, sets in row.items() if instruction_set in sets}


def table(everything: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of every goal and its measured ratio."""
    lines = []
    for content in everything.values():
        if content["machine"]["device"] != "cpu":
            continue
        chosen = content["machine"]["instruction_set"]
        for key in GOALS:
            row = content["rows"].get(key)
            if row is None:
                continue
            for name, goal in of(key, chosen).items():
                contender = row["contenders"][name]
                holds = "both" in contender and contender["both"]["ratio"]["median"] >= goal
                cells = [
                    chosen,
                    key,
                    tables.NAMES[name],
                    tables.ratio(contender, "both", brief=False),
                ]
                lines.append([*cells, f"{goal:g}", "yes" if holds else "no"])
    return tables.table(["instructions", "row", "contender", "ratio", "goal", "holds"], lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.goals", description=__doc__)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    print(table(report.load(parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
