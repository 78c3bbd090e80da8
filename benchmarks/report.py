"""Pages from the JSON files: one per machine, and the generated parts of README.md and docs/.

Every printed figure comes from a file in `results/`; a test compares the documents with the files.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import cluster_model
from benchmarks.tables import (
    NAMES,
    OURS,
    error_table,
    large_table,
    mode_of,
    speed_table,
    study_table,
)

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs/performance.md"
# The machine and the losses of the README's figure and first lines.
QUOTED, QUOTED_GPU = "cpu-amd-epyc-2core", "cuda-nvidia-h200"
OVERVIEW = {"max_of_hinges": "Max of hinges", "info_nce": "InfoNCE"}
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"
NOISE = 0.97  # a contender this close to ours, or within the quartiles, is as fast, not faster

# Why a contender is faster: the first expression that matches "key backend contender".
REASONS = (
    (
        r"^similarity/cosine.*bfloat16 triton ",
        f"{OURS} multiplies the rows as they are and scales the products, the other rounds unit "
        "rows to bf16 and leaves the product to the library",
    ),
    (
        r"bfloat16 native",
        f"{OURS} computes bf16 in fp32 (its error is in the table), the other in bf16",
    ),
    (
        r"^(?:info_nce|info_cmr without extras|sigmoid|ito loss).* native ",
        "the same three products take most of the time of both; torch.compile fuses the "
        "operations around them",
    ),
    (
        r"^kmeans/.* native ",
        f"{OURS} passes over the rows twice, to assign them and to sum them; scikit-learn once",
    ),
    (r" reference ", "there is no kernel yet: `auto` runs plain PyTorch"),
)


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results of every machine by the file's name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def not_fastest(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence for every row in which a contender beats ours beyond the noise."""
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


def machine_sentence(content: dict[str, Any]) -> str:
    """Return the processor, the instruction set, the commit and the versions of a measurement."""
    machine = content["machine"]
    on = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    packages = ", ".join(f"{k} {v or 'not installed'}" for k, v in content["versions"].items())
    chosen = [f"`{k}={v}`" for k, v in machine.get("chosen", {}).items()]
    instructions = ": ".join(filter(None, (machine["instruction_set"], " ".join(chosen))))
    if "gpu" in machine:
        instructions = f"host {machine['cpu']}"
    return f"{on} ({instructions}), commit {content['commit']}; {packages}."


def page(name: str, content: dict[str, Any]) -> str:
    """Return the page of one machine, with everything that was measured there."""
    rows = content["rows"]
    limits = ", ".join(f"{key} {rate:.3g}" for key, rate in content["limits"].items())
    parts = [f"# {name}\n", machine_sentence(content) + "\n", f"Limits: {limits}.\n"]
    parts += [
        "Times are of forward plus backward where there is a gradient, medians of interleaved "
        f"rounds. A ratio is a contender's time divided by that of {OURS}: above 1, {OURS} is "
        "faster.\n"
    ]
    if content["machine"].get("gpu"):
        parts += [
            "Times are the GPU's, with a cold L2, while its queue is full, as in a training step. "
            'The host needs the time of the column "host ms" to issue the same step: below '
            "some thousand rows it is the longer one, and the limit of a loop that waits for every "
            "loss. A CUDA graph removes it.\n"
        ]
    for dtype in ("float32", "bfloat16"):
        if any(row["dtype"] == dtype for row in rows.values()):
            parts += [f"## Speed, {dtype}\n", speed_table(rows, dtype)]
    lost = not_fastest(rows)
    parts += [f"## Where {OURS} is not the fastest\n"]
    parts += ["\n".join(lost or ["No row of this run."]) + "\n"]
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


def performance_section(everything: dict[str, dict[str, Any]]) -> str:
    """Return the generated part of docs/performance.md: the speed table of every machine.

    GPUs are shown in bf16, CPUs in fp32.
    """
    if not everything:
        return "No measurement is committed yet.\n"
    parts = []
    for name, content in everything.items():
        lost = len(not_fastest(content["rows"]))
        folder = "../benchmarks/results"
        parts += [f"### {name}\n", f"{machine_sentence(content)}\n"]
        on_gpu = "gpu" in content["machine"]
        parts += [speed_table(content["rows"], "bfloat16" if on_gpu else "float32", True)]
        more = "memory and errors against fp64"
        if content.get("scaling"):
            more = "bf16, memory, errors against fp64, scaling"
        if lost:
            more += f", and the {lost} comparisons that {OURS} does not win, with reasons"
        parts += [f"[{name}.md]({folder}/{name}.md) has the quartiles, {more}.\n"]
        if content.get("scaling"):
            parts += [f"![Time and memory of every loss over N]({folder}/{name}-scaling.png)\n"]
    return "\n".join(parts)


def _saving(loss: str, title: str, content: dict[str, Any]) -> str:
    """Return one line on the time and memory of a loss at the large batch of the memory study."""
    record = content["memory"][loss]
    ours, eager = (record[name]["points"][-1] for name in ("ours", "eager"))
    speed, saved = (eager[field] / ours[field] for field in ("seconds", "peak_memory"))
    return (
        f"- {title}, {ours['N']:,} pairs, D = {record['D']}: **{speed:.2g} times as fast in "
        f"1/{saved:.0f} of the memory** ({ours['seconds']:.2g} s and "
        f"{ours['peak_memory'] / 2**20:.0f} MiB; eager {eager['seconds']:.3g} s and "
        f"{eager['peak_memory'] / 2**30:.1f} GiB)."
    )


def _saving_on_gpu(loss: str, title: str, content: dict[str, Any]) -> str:
    """Return one line on the time and memory of a loss at the large batch of a GPU, in bf16."""
    row = content["rows"][f"{loss}/N=32768,D=1024,bfloat16"]
    ours, eager = (row["contenders"][name] for name in ("ours", "eager"))
    gpu = content["machine"]["gpu"].split(",")[0]
    return (
        f"- {title} on an {gpu} in bf16, {row['N']:,} pairs, D = {row['D']:,}: "
        f"**{eager['both']['ratio']['median']:.2g} times as fast in "
        f"1/{eager['peak_memory'] / ours['peak_memory']:.0f} of the memory** "
        f"({1e3 * ours['both']['median']:.2g} ms and {ours['peak_memory'] / 2**20:.0f} MiB; eager "
        f"{1e3 * eager['both']['median']:.2g} ms and {eager['peak_memory'] / 2**30:.1f} GiB)."
    )


def headline(content: dict[str, Any], on_gpu: dict[str, Any]) -> str:
    """Return the README's figures: two losses at large batches, all losses at a small one."""
    small = [row for row in content["rows"].values() if row["N"] == 128]
    eager = [row["contenders"].get("eager") for row in small if row["dtype"] == "float32"]
    ratios = [found["both"]["ratio"]["median"] for found in eager if found]
    large = [_saving(loss, title, content) for loss, title in OVERVIEW.items()]
    last = (
        f"- CPU, batches of 128, D = {small[0]['D']:,}: **{min(ratios):.2f} to {max(ratios):.2f} "
        "times as fast**, depending on the loss.\n"
    )
    gpu = [_saving_on_gpu(loss, title, on_gpu) for loss, title in OVERVIEW.items()]
    return "\n".join((*large, last[:-1], *gpu)) + "\n"


def with_section(document: str, section: str) -> str:
    """Return a document with the text between its markers replaced."""
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def documents(everything: dict[str, dict[str, Any]]) -> dict[Path, str]:
    """Return the README and docs/performance.md with the figures of the committed results."""
    sections = {
        README: headline(everything[QUOTED], everything[QUOTED_GPU]),
        PERFORMANCE: performance_section(everything),
    }
    return {
        path: with_section(path.read_text(encoding="utf-8"), section)
        for path, section in sections.items()
    }


def pages(everything: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return every page by its file's name."""
    found = {f"{name}.md": page(name, content) for name, content in everything.items()}
    return found | {"cluster-model.md": cluster_model.table()}


def main() -> None:
    """Write every page; for the committed results also the README and docs/performance.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    folder = parser.parse_args().results
    folder.mkdir(parents=True, exist_ok=True)
    everything = load(folder)
    for name, text in pages(everything).items():
        (folder / name).write_text(text, encoding="utf-8")
    if folder == RESULTS:
        for path, text in documents(everything).items():
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
