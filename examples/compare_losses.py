"""Train every loss with several seeds on one data set and write one table.

All runs have the same model, data and number of epochs. A complete run in ``--out`` is not
repeated, and an interrupted one continues. The test split is evaluated once per run, with the
weights that were best on dev.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from objectives import LOSS_NAMES

PROGRAM = Path(__file__).with_name("train_retrieval.py")


def main(arguments: list[str] | None = None) -> int:
    """Run the missing runs, then write ``RESULTS.json`` and ``RESULTS.md``.

    Args:
        arguments: command line without the program's name; None reads ``sys.argv``.

    Returns:
        0; 1 when a run failed.
    """
    parser = argparse.ArgumentParser(prog="compare_losses", description=__doc__)
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="precomp directory, or 'scenes'")
    add("--losses", nargs="+", default=LOSS_NAMES, choices=LOSS_NAMES)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--epochs", type=int, default=10)
    add("--jobs", type=int, default=1, help="number of parallel runs, one thread each")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    add("--results", type=Path, required=True, help="file to write, without .json and .md")
    parsed = parser.parse_args(arguments)
    wanted = [(loss, seed) for seed in parsed.seeds for loss in parsed.losses]

    def run(loss: str, seed: int) -> int:
        directory = parsed.out / f"{loss}-{seed}"
        if (directory / "history.json").exists():
            return 0
        command = [sys.executable, str(PROGRAM), "--data", parsed.data, "--loss", loss]
        command += ["--seed", str(seed), "--epochs", str(parsed.epochs), "--out", str(directory)]
        command += ["--threads", "1", "--test", "--resume"]
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "log.txt", "a", encoding="utf-8") as log:
            return subprocess.run(command, stdout=log, stderr=log, check=False).returncode

    with ThreadPoolExecutor(parsed.jobs) as pool:
        codes = list(pool.map(run, *zip(*wanted, strict=True)))
    for (loss, seed), code in zip(wanted, codes, strict=True):
        if code:
            log = parsed.out / f"{loss}-{seed}" / "log.txt"
            print(f"compare_losses: {loss} with seed {seed} failed, see {log}", file=sys.stderr)
    if any(codes):
        return 1
    records = [
        json.loads((parsed.out / f"{loss}-{seed}" / "history.json").read_text(encoding="utf-8"))
        for loss, seed in wanted
    ]
    summary = [_summarise(record) for record in records]
    parsed.results.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"data": Path(parsed.data).name, "runs": summary}, indent=1)
    parsed.results.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    table = write_table(summary)
    parsed.results.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def write_table(runs: list[dict[str, Any]]) -> str:
    """Return a Markdown table, one row per loss, the best mean dev R-sum first.

    Args:
        runs: the entry ``runs`` of the JSON file.

    Returns:
        Means over the seeds, R-sums with their sample standard deviation.
    """
    losses: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        losses.setdefault(run["loss"], []).append(run)

    def dev(loss: str) -> float:
        return mean(run["dev"]["rsum"] for run in losses[loss])

    ks = list(runs[0]["test"]["i2t"])
    recalls = "/".join(ks)
    lines = [
        f"| loss | seeds | dev R-sum | test R-sum | test image to text R@{recalls} "
        f"| test text to image R@{recalls} | minutes per run, one thread |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for loss in sorted(losses, key=dev, reverse=True):
        group = losses[loss]
        directions = [
            " ".join(f"{mean(run['test'][direction][k] for run in group):.1f}" for k in ks)
            for direction in ("i2t", "t2i")
        ]
        minutes = mean(run["minutes"] for run in group)
        figures = [
            loss,
            str(len(group)),
            spread([run["dev"]["rsum"] for run in group]),
            spread([run["test"]["rsum"] for run in group]),
            *directions,
            f"{minutes:.1f}",
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """Return the mean of R-sums and, of several, their sample standard deviation."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _summarise(record: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in record["options"].items() if name != "data"}
    return {
        **options,
        "best_epoch": record["best_epoch"],
        "dev": record["dev"],
        "test": record["test"],
        "minutes": sum(record["seconds"]) / 60,
        "backends": record["loss_time"]["chosen"],
        "threads": record["threads"],
    }


if __name__ == "__main__":
    sys.exit(main())
