"""Markdown tables of benchmark results: speed, errors, memory, scaling."""

from typing import Any

NAMES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "reference": "our plain PyTorch",
    "metric_learning": "pytorch-metric-learning",
    "open_clip": "open_clip",
    "scan": "SCAN's loop",
    "gram": "Gram form in eager",
    "gram_compile": "Gram form in torch.compile",
    "keops": "pykeops",
    "scikit_learn": "scikit-learn",
    "faiss": "faiss",
    "inf_cl": "Inf-CL",
    "memeff": "memeff",
    "siglip_kernel": "siglip-kernel",
    "late_interaction_kernels": "late-interaction-kernels",
}
OURS = "itm_kernels"


def mode_of(row: dict[str, Any]) -> str:
    """Return the measured mode to show: forward and backward, or forward without a gradient."""
    return "both" if "both" in row["contenders"]["ours"] else "forward"


def milliseconds(times: dict[str, float]) -> str:
    """Return a median with its quartiles."""
    return f"{1e3 * times['median']:.3g} ({1e3 * times['low']:.3g} to {1e3 * times['high']:.3g})"


def ratio(contender: dict[str, Any], mode: str, brief: bool) -> str:
    """Return a contender's time divided by ours, or the reason why it has none."""
    if mode not in contender:
        return str(contender["status"])
    found = contender[mode]["ratio"]
    if brief:
        return f"{found['median']:.2f}"
    if contender["rounds"] == 1:
        return f"{found['median']:.2f} (one run)"
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def size(memory: float | None) -> str:
    """Return a number of bytes in MiB."""
    return "" if memory is None else f"{memory / 2**20:,.1f} MiB"


def rival_cells(row: dict[str, Any], mode: str, brief: bool) -> list[str]:
    """Return the cells of eager, torch.compile and the packages of one row."""
    contenders = row["contenders"]
    names = [name for name in NAMES if name in contenders]
    cell = {name: ratio(contenders[name], mode, brief) for name in names}
    cells = [cell.pop("eager", ""), cell.pop("compile", "")]
    packages = [f"{NAMES[name]} {text}" for name, text in cell.items()]
    return [*cells, "; ".join(packages)]


def described(row: dict[str, Any]) -> list[str]:
    """Return the cells that name a row: the operator with its case, and the size."""
    sizes = f"{row['N']:,} x {row['D']:,}"
    return [" ".join(filter(None, (row["operator"], row["case"]))), sizes]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def speed_table(rows: dict[str, dict[str, Any]], dtype: str, brief: bool = False) -> str:
    """Return the table of one precision: our milliseconds, and every contender's time over ours.

    On a GPU, a column shows the time in which the host issues a step, ours and eager's.
    """
    lines = []
    on_gpu = any("host" in row["contenders"]["ours"] for row in rows.values())
    for row in rows.values():
        if row["dtype"] != dtype:
            continue
        mode = mode_of(row)
        ours = row["contenders"]["ours"][mode]
        cells = [*described(row), milliseconds(ours), *rival_cells(row, mode, brief)]
        cells += [host_cell(row["contenders"])] if on_gpu else []
        lines.append([*cells, f"{ours['percent_of_limit']:.0f} % of {row['limit']['kind']}"])
    head = ["operator or loss", "N x D", f"{OURS}, ms (quartiles)", "PyTorch eager, ratio"]
    head += ["torch.compile, ratio", "packages, ratio"]
    head += [f"host ms: {OURS}, eager"] if on_gpu else []
    return table([*head, "share of the machine's limit"], lines)


def host_cell(contenders: dict[str, dict[str, Any]]) -> str:
    """Return the milliseconds in which the host issues a step, ours and eager's."""
    found = [contenders.get(name, {}).get("host") for name in ("ours", "eager")]
    return ", ".join("" if host is None else f"{1e3 * host:.3g}" for host in found)


def error_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return errors against fp64 and peak memory of every contender."""
    lines = []
    for row in rows.values():
        for name, contender in row["contenders"].items():
            if "error" not in contender:
                continue
            cells = [*described(row), row["dtype"], NAMES.get(name, OURS)]
            cells += [f"{contender['error']:.1e}", f"{contender['gradient_error']:.1e}"]
            lines.append([*cells, size(contender["peak_memory"])])
    head = ["operator or loss", "N x D", "precision", "implementation", "error of the value"]
    return table([*head, "error of the gradient", "peak memory"], lines)


def study_table(section: dict[str, Any]) -> str:
    """Return the last point and the exponents of every curve."""
    lines = []
    for name, record in section.items():
        for contender, curve in record.items():
            if contender == "D":
                continue
            reached = [p for p in curve["points"] if "seconds" in p]
            last = reached[-1] if reached else None
            stopped = curve["points"][-1].get("status", "") if curve["points"] else ""
            beyond = f"{curve['points'][-1]['N']:,}: {stopped}" if stopped else ""
            exponents = [curve["time_exponent"], curve["memory_exponent"]]
            cells = [name, NAMES.get(contender, OURS), str(record["D"])]
            cells += (
                [f"{last['N']:,}", f"{last['seconds']:.3g} s", size(last["peak_memory"])]
                if (last)
                else ["", "", ""]
            )
            cells += ["" if value is None else f"{value:.2f}" for value in exponents]
            lines.append([*cells, beyond])
    head = ["loss", "implementation", "D", "largest N", "time", "peak memory", "time exponent"]
    return table([*head, "memory exponent", "next size"], lines)


def large_table(section: dict[str, Any]) -> str:
    """Return the table of runs with more than 2^31 pairs."""
    lines = [
        [
            name,
            f"{r['N']:,} x {r['D']}",
            f"{r['forward']:.1f}",
            f"{r['backward']:.1f}",
            size(r["peak_memory"]),
            f"{100 * max(r['rows_off'].values()):.1f} % of {r['sampled_rows']}",
        ]
        for name, r in section.items()
    ]
    head = ["loss", "N x D", "forward, s", "backward, s", "peak memory"]
    return table([*head, "sampled rows that differ from fp64"], lines)
