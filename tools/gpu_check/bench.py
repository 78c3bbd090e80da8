"""Benchmark every row of the goal table against plain PyTorch, at GPU sizes.

The method is that of `benchmarks` (interleaved rounds, values compared with fp64 first), without
pytest. The rate of each row is reported next to that of a matrix product of the same size, measured
in the same rounds.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks import limits, memory, results, rivals
from benchmarks.interleaved import Contender, Row, Run, summary
from benchmarks.rivals import Builder, Function, plain
from benchmarks.shapes import WIDTH, Size
from tools.gpu_check.goal_table import ENTRIES, Prepared
from tools.gpu_check.journal import Check, Setting

# A row ends after ROUNDS rounds, or after SECONDS once FEWEST rounds are done.
ROUNDS, FEWEST, SECONDS = 15, 5, 1.5
TINY_ROUNDS = 2
# Seconds of a row on an H200, by N: most of it compiles our kernels and draws data on the host.
PREDICTED = {128: 1.0, 512: 3.0, 4096: 3.5, 32768: 4.5}


def truth(row: Row, formula: Function, device: str) -> list[torch.Tensor] | None:
    """Return the value and gradients in fp64, or None if they do not fit in memory."""
    try:
        exact = Run(row, formula, device, double=True)
        exact()
        return exact.found()
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        return None


def race(
    name: str, size: Size, setting: Setting, store: results.Results, others: bool = False
) -> dict[str, Any]:
    """Measure one row, store it, and return its ratios."""
    entry, device = ENTRIES[name], setting.device
    if not store.content["limits"]:
        store.content["limits"] = limits.measured(device)
    found: Prepared = entry.prepare(size, device)
    row = found.row
    expected = truth(row, found.formula, device) if found.comparable else None
    row.facts["compared with fp64"] = expected is not None
    release_memory(device)
    builders: dict[str, Builder] = {"ours": plain(found.ours), "eager": plain(found.formula)}
    if others:
        backend = "eager" if setting.tiny else "inductor"
        builders["compile"] = rivals.compiled(found.formula, backend)
        builders |= entry.packages(size)
    contenders = []
    for rival, builder in builders.items():
        contenders.append(Contender(rival, row, builder, device))
        check_contender(contenders[-1], expected)
        release_memory(device)
    if contenders[0].run is None:
        raise RuntimeError(f"ours: {contenders[0].record['status']}")
    probe = limits.Probe(row.work.kind, size.N, size.D, size.dtype, device)
    rates: list[float] = []
    began = time.perf_counter()
    for number in range(TINY_ROUNDS if setting.tiny else ROUNDS):
        if number >= FEWEST and time.perf_counter() - began > SECONDS:
            break
        rates.append(probe.rate())
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.measure()
    record = summary(contenders, rates, row)
    store.add("rows", row.key, record)
    return figures(record)


def check_contender(contender: Contender, expected: list[torch.Tensor] | None) -> None:
    """Compare a contender with fp64 if that fits in memory, and measure its time and memory.

    A rival that fails is left out; a failure of ours is raised.
    """
    try:
        if expected is not None:
            contender.compare(expected)
        contender.weigh()
    except Exception as error:
        if contender.name == "ours":
            raise
        contender.run = None
        out = memory.is_out_of_memory(error)
        contender.record = {"status": "out of memory" if out else f"fails: {str(error)[:160]}"}


def release_memory(device: str) -> None:
    """Release cached memory, so that it is available to the next contender."""
    if device == "cuda":
        torch.cuda.empty_cache()


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of the summary: our times, and the ratios of the others to them."""
    found: dict[str, Any] = {"backends": record["backends"]}
    for name, contender in record["contenders"].items():
        modes = [mode for mode in ("forward", "backward", "both") if mode in contender]
        if not modes:
            found[name] = contender["status"]
        elif name == "ours":
            whole = contender[modes[-1]]
            found |= {f"{mode} ms": 1000 * contender[mode]["median"] for mode in modes}
            found["TFLOP/s"] = whole["rate"] / 1e12
            found["% of product"] = whole["percent_of_limit"]
            found["peak MiB"] = (contender.get("peak_memory") or 0) / 2**20
            found |= {"host ms": 1000 * contender["host"]} if "host" in contender else {}
        else:
            found[name] = {mode: contender[mode]["ratio"]["median"] for mode in modes}
            found[name]["peak MiB"] = (contender.get("peak_memory") or 0) / 2**20
            found[name]["host ms"] = 1000 * contender.get("host", 0.0)
    return results.rounded(found)


def open_results(setting: Setting) -> results.Results:
    """Open this machine's results file, keeping the rows that it already contains."""
    facts = results.machine(setting.device, torch.get_num_threads())
    store = results.Results(setting.out / f"{results.name(facts)}.json")
    store.begin(facts, rivals.versions(), resume=True)
    return store


def rows(tiny: bool) -> Iterator[tuple[str, Size]]:
    """Yield every row of the goal table, the most informative sizes first."""
    if tiny:
        for name, entry in ENTRIES.items():
            yield name, Size(33, 24, entry.dtypes[-1])
        return
    half, single = torch.bfloat16, torch.float32
    for N, dtype in (
        *((4096, half), (32768, half), (4096, single), (128, half), (128, single)),
        *((512, half), (512, single), (32768, single)),
    ):
        for name, entry in ENTRIES.items():
            if N in entry.rows and dtype in entry.dtypes:
                yield name, Size(N, WIDTH, dtype)


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per row."""
    store = open_results(setting)
    return [
        Check(
            f"bench/{name}/{size}",
            partial(race, name, size, setting, store),
            predicted=PREDICTED.get(size.N, 1.0),
        )
        for name, size in rows(setting.tiny)
    ]
