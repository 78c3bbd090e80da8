"""Tables from the JSON files: one page per machine, and the README's section.

Every figure that is printed comes from a file in `results/`; a test holds the README to them.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import cluster_model

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- performance: begin -->\n", "<!-- performance: end -->\n"
NAMES = {
    "eager": "PyTorch eager",
    "compile": "torch.compile",
    "reference": "our plain PyTorch",
    "metric_learning": "pytorch-metric-learning",
    "open_clip": "open_clip",
    "keops": "pykeops",
    "scikit_learn": "scikit-learn",
    "faiss": "faiss",
    "inf_cl": "Inf-CL",
    "memeff": "memeff",
    "siglip_kernel": "siglip-kernel",
}
NOISE = 0.97  # a rival this close to ours, or within the quartiles, is as fast, not faster

# Why a rival is faster: the first expression that matches "key backend rival". Empty: not known.
REASONS = (
    (r"bfloat16", "ours computes bf16 in fp32 (its error is in the table), the rival in bf16"),
    (
        r"^(?:info_nce|info_cmr without extras|sigmoid|ito loss).* native ",
        "the same three products, which are most of the time of both; torch.compile fuses what "
        "stands around them",
    ),
    (
        r"^kmeans/.* native ",
        "assigning rows and adding them up are two passes over the rows, scikit-learn makes one",
    ),
    (r" reference ", "no kernel yet: `auto` runs plain PyTorch"),
)


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results of every machine by the file's name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def mode_of(row: dict[str, Any]) -> str:
    """Return the mode that a table shows: forward and backward where there is a backward."""
    return "both" if "both" in row["contenders"]["ours"] else "forward"


def milliseconds(times: dict[str, float]) -> str:
    """Return a median with its quartiles."""
    return f"{1e3 * times['median']:.3g} ({1e3 * times['low']:.3g} to {1e3 * times['high']:.3g})"


def ratio(contender: dict[str, Any], mode: str, brief: bool) -> str:
    """Return how many times longer a rival takes than ours, or why it does not."""
    if mode not in contender:
        return str(contender["status"])
    found = contender[mode]["ratio"]
    if brief:
        return f"{found['median']:.2f}"
    if contender["rounds"] == 1:
        return f"{found['median']:.2f} (one run)"
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def size(memory: float | None) -> str:
    """Return bytes for people."""
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
    """Return the cells that say what a row is."""
    sizes = f"{row['N']:,} x {row['D']:,}"
    return [" ".join(filter(None, (row["operator"], row["case"]))), sizes]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def speed_table(rows: dict[str, dict[str, Any]], dtype: str, brief: bool = False) -> str:
    """Return the table of one precision: ours in milliseconds, rivals as multiples of it."""
    lines = []
    for row in rows.values():
        if row["dtype"] != dtype:
            continue
        mode = mode_of(row)
        ours = row["contenders"]["ours"][mode]
        cells = [*described(row), milliseconds(ours), *rival_cells(row, mode, brief)]
        lines.append([*cells, f"{ours['percent_of_limit']:.0f} % of {row['limit']['kind']}"])
    head = ["operator or loss", "N x D", "ours, ms (quartiles)", "PyTorch eager, times longer"]
    head += ["torch.compile, times longer", "packages, times longer", "of the machine's limit"]
    return table(head, lines)


def not_fastest(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence for every row in which a rival beats ours beyond the noise."""
    sentences = []
    for key, row in rows.items():
        mode = mode_of(row)
        for name, contender in row["contenders"].items():
            if name == "ours" or mode not in contender:
                continue
            found = contender[mode]["ratio"]
            if found["median"] < NOISE and found["high"] < 1:
                chosen = "+".join(sorted(set(row["backends"].values())))
                text = f"{key} {chosen} {name}"
                reasons = [reason for pattern, reason in REASONS if re.search(pattern, text)]
                why = reasons[0] if reasons else "reason not known"
                sentences.append(f"- {key}: {NAMES[name]} {found['median']:.2f}; {why}.")
    return sentences


def error_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return errors against fp64 and peak memory of ours and its rivals."""
    lines = []
    for row in rows.values():
        for name, contender in row["contenders"].items():
            if "error" not in contender:
                continue
            cells = [*described(row), row["dtype"], NAMES.get(name, name)]
            cells += [f"{contender['error']:.1e}", f"{contender['gradient_error']:.1e}"]
            lines.append([*cells, size(contender["peak_memory"])])
    head = ["operator or loss", "N x D", "precision", "contender", "error of the value"]
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
            cells = [name, NAMES.get(contender, contender), str(record["D"])]
            cells += (
                [f"{last['N']:,}", f"{last['seconds']:.3g} s", size(last["peak_memory"])]
                if (last)
                else ["", "", ""]
            )
            cells += ["" if value is None else f"{value:.2f}" for value in exponents]
            lines.append([*cells, beyond])
    head = ["loss", "contender", "D", "largest N", "time", "peak memory", "time exponent"]
    return table([*head, "memory exponent", "beyond"], lines)


def large_table(section: dict[str, Any]) -> str:
    """Return the run beyond 2^31 pairs."""
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


def machine_sentence(content: dict[str, Any]) -> str:
    """Return what was measured on, with what."""
    machine = content["machine"]
    on = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    packages = ", ".join(f"{k} {v or 'not installed'}" for k, v in content["versions"].items())
    chosen = [f"`{k}={v}`" for k, v in machine.get("chosen", {}).items()]
    instructions = ": ".join(filter(None, (machine["instruction_set"], " ".join(chosen))))
    return f"{on} ({instructions}), commit {content['commit']}; {packages}."


def page(name: str, content: dict[str, Any]) -> str:
    """Return everything that one machine measured."""
    rows = content["rows"]
    limits = ", ".join(f"{key} {rate:.3g}" for key, rate in content["limits"].items())
    parts = [f"# {name}\n", machine_sentence(content) + "\n", f"Limits: {limits}.\n"]
    parts += ["Forward plus backward where there is a gradient, medians of interleaved rounds.\n"]
    for dtype in ("float32", "bfloat16"):
        parts += [f"## Speed, {dtype}\n", speed_table(rows, dtype)]
    lost = not_fastest(rows)
    parts += ["## Where ours is not fastest\n", "\n".join(lost or ["Nowhere in this run."]) + "\n"]
    titles = {
        "memory": "Memory of a large batch, without holes of the C heap",
        "scaling": "Time and memory over N",
    }
    for section, title in titles.items():
        if content.get(section):
            parts += [f"## {title}\n", study_table(content[section])]
    if content.get("large"):
        parts += ["## More than 2^31 pairs\n", large_table(content["large"])]
    parts += ["## Errors against fp64, and memory\n", error_table(rows)]
    return "\n".join(parts)


def readme_section(everything: dict[str, dict[str, Any]]) -> str:
    """Return what stands between the README's markers."""
    if not everything:
        return "No measurement is committed yet.\n"
    parts = []
    for name, content in everything.items():
        lost = len(not_fastest(content["rows"]))
        folder = "benchmarks/results"
        parts += [
            f"On {machine_sentence(content)}\n",
            speed_table(content["rows"], "float32", True),
        ]
        more = "memory and errors against fp64"
        if content.get("scaling"):
            more = "bf16, memory, errors against fp64, scaling"
        if lost:
            more += f", and the {lost} comparisons that ours does not win, with reasons"
        where = f"[`{folder}/{name}.md`]({folder}/{name}.md)"
        parts += [
            f"{where} has the quartiles, {more}.\n",
        ]
        if content.get("scaling"):
            parts += [f"![time and memory over N]({folder}/{name}-scaling.png)\n"]
    return "\n".join(parts)


def with_section(readme: str, section: str) -> str:
    """Return the README with its performance section replaced."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def pages(everything: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return every page by its file's name."""
    found = {f"{name}.md": page(name, content) for name, content in everything.items()}
    return found | {"cluster-model.md": cluster_model.table()}


def main() -> None:
    """Write every page, and the README's section if these are the committed results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    folder = parser.parse_args().results
    folder.mkdir(parents=True, exist_ok=True)
    everything = load(folder)
    for name, text in pages(everything).items():
        (folder / name).write_text(text, encoding="utf-8")
    if folder == RESULTS:
        readme = README.read_text(encoding="utf-8")
        README.write_text(with_section(readme, readme_section(everything)), encoding="utf-8")


if __name__ == "__main__":
    main()
