"""Predictions compared with GPU measurements, and the rate that each measured row implies."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import table

# Operator and case, as in `tools.gpu_check.goal_table` and the benchmarks -> row of the sheet.
NAMES = {
    ("max_of_hinges", ""): "max of hinges",
    ("sum_of_hinges", ""): "sum of hinges",
    ("intra_modal", "cosine"): "bounded cosines",
    ("intra_modal", "l1"): "bounded l1",
    ("intra_modal", "l2"): "bounded l2",
    ("imc", ""): "imc",
    ("info_nce", ""): "info_nce",
    ("sigmoid", ""): "sigmoid",
    ("info_cmr", ""): "info_cmr plain",
    ("info_cmr default", ""): "info_cmr",
    ("itm", ""): "itm",
    ("ito", ""): "ito",
    ("ranks", ""): "ranks",
    ("kmeans", "K=256"): "kmeans",
    ("rbf_synthesis", "attention"): "rbf attention",
    ("rbf_synthesis", "kam"): "rbf kam",
}
DTYPES = {"bfloat16": "bf16", "float32": "fp32"}
CONTENDERS = ("ours", "eager")


def compared(sheet: Mapping[str, Any], measured: Mapping[str, Any]) -> list[list[str]]:
    """Return table lines: predicted and measured ms, their ratio, and the implied rates."""
    lines = []
    for record in measured["rows"].values():
        name = NAMES.get((record["operator"], record.get("case", "")))
        key = f"{name}/N={record['N']},{DTYPES.get(record['dtype'])}"
        row = sheet["rows"].get(key)
        if name is None or row is None or record["D"] != 1024:
            continue
        for who in CONTENDERS:
            contender = record["contenders"].get(who, {})
            times = contender.get("both") or contender.get("forward")
            if not times:
                continue
            mode = "ms" if "both" in contender else "forward ms"
            predicted, found = row[who][mode], 1e3 * times["median"]
            flop = sum(row[who]["TFLOP"].values())
            rates = f"{flop / found * 1e3:.0f}" if mode == "ms" else ""
            bandwidth = f"{row[who]['HBM GB'] / found:.2f}" if mode == "ms" else ""
            ratio = f"{found / predicted:.2f}"
            peak = (contender.get("peak_memory") or 0) / 1e6
            memory = [f"{row[who]['peak MB']:.0f}", f"{peak:.0f}"]
            cells = [f"{predicted:.3g}", f"{found:.3g}", ratio, rates, bandwidth, *memory]
            lines.append([key, who, *cells, row[who]["term"]])
    return lines


def compare(sheet: Mapping[str, Any], path: Path) -> str:
    """Return a Markdown table that compares a results file with the sheet."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    head = ["row", "who", "predicted ms", "measured ms", "measured / predicted"]
    head += ["TFLOP/s", "HBM TB/s", "predicted MB", "measured MB", "largest predicted term"]
    return table(head, compared(sheet, measured))
