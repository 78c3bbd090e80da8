"""Compile every Triton kernel as its launcher would, for GPUs that are not present.

`python -m tools.compile_report.triton_kernels [operator ...]` runs the launchers on meta tensors
(`triton_launches.py`), compiles the kernels that they would launch (`triton_jobs.py`,
`triton_reports.py`) and reads their resource use from the binaries (`triton_binary.py`): registers,
spills, shared memory, tensor-core instructions, asynchronous copies. TRITON_INTERPRET must not be
set.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from itm_kernels import _devices
from tools.compile_report import recorded
from tools.compile_report.triton_binary import AMD, SHARED, Use
from tools.compile_report.triton_jobs import Job, planner, without_repeats
from tools.compile_report.triton_launches import LAUNCHES
from tools.compile_report.triton_reports import Record, never, uses
from tools.native_meta import native_meta

FOUND = recorded.ROOT / "build" / "triton-offline"  # reports of earlier runs
TABLE = Path(__file__).parent / "triton.tsv"

# 256 and 4096 rows use the small and the large tiles. In bf16, D = 500 is aligned to 8 bytes and
# D = 333 is unaligned: both must keep pipelined loads. fp32 with D = 24 is not split into parts.
CASES = (
    *(("bf16", N, D) for N in (256, 4096) for D in (1024, 500, 333)),
    *(("fp16", N, D) for N, D in ((256, 333), (4096, 1024))),
    *(("tf32", N, D) for N in (256, 4096) for D in (1024, 333)),
    *(("fp32", N, D) for N, D in ((256, 1024), (4096, 1024), (4096, 24))),
    # Arguments equal to 1 become constants and give other code. fp64 must compile, but may spill.
    *((precision, 1, 1) for precision in ("bf16", "fp32", "fp64")),
    ("fp64", 33, 333),
)
# CI compiles all cases on one architecture and a few on the others: of all operators, or of the
# core operators on GPUs with 99 KB of shared memory. ALL=1 compiles everything everywhere.
WHOLE = 90
CORE_ARCHITECTURES = (86, 89, 120)
CORE_CASES = (("bf16", 4096, 1024), ("fp32", 4096, 1024))
CORE_OPERATORS = (
    *("max_of_hinges", "sum_of_hinges", "log_sum_exp", "sigmoid", "intra_modal"),
    *("rbf_synthesis", "kmeans"),
)
# Some cases on AMD, to check that the same source compiles; NVIDIA's pipeline rules do not apply.
AMD_CASES = (("bf16", 4096, 1024), ("fp32", 256, 1024), ("fp32", 4096, 24))
PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "fp64": (torch.float64, "highest"),
}


def cached_by_shape(spans_of: Callable[..., Any]) -> Callable[..., Any]:
    """Cache spans_of by shape: it launches no kernel, and it took half of the planning time."""
    known: dict[tuple[Any, ...], Any] = {}

    def found(starts: Tensor, *sizes: int) -> Any:
        key = (*starts.shape, *sizes)
        known[key] = known[key] if key in known else spans_of(starts, *sizes)
        return known[key]

    return found


def cases_of(operator: str, architecture: int | str, few: bool) -> Iterable[tuple[str, int, int]]:
    """Return the cases (precision, N, D) that an operator is compiled for on an architecture."""
    if architecture == AMD:
        cases = AMD_CASES[:1] if few else AMD_CASES
        return () if operator in _devices.NOT_ON_AMD else cases
    if few and architecture != WHOLE:
        core = operator in CORE_OPERATORS or architecture not in CORE_ARCHITECTURES
        return CORE_CASES if core else ()
    return CASES


def planned(
    operators: Iterable[str], architecture: int | str, few: bool = False
) -> tuple[list[Job], set[Any]]:
    """Return the jobs of some operators, and the rows of the tile table that they use."""
    from itm_kernels.triton import (
        _cholesky,
        _clusters,
        _gram_gradient,
        _synthesis_backward,
        _tile_table,
        gluon,
    )

    jobs: dict[str, Job] = {}
    used: set[_tile_table.TableRow] = set()
    table_row = _tile_table.table_row

    def noted(*arguments: object) -> _tile_table.TableRow:
        used.add(line := table_row(*arguments))
        return line

    spans = cached_by_shape(_clusters.spans_of)
    before = torch.get_float32_matmul_precision()
    with (
        planner(architecture) as begin,
        patch.object(_tile_table, "table_row", noted),
        patch.object(gluon, "PROVEN", frozenset()),  # `gluon_kernels` compiles those
        patch.object(_cholesky, "spans_of", spans),
        patch.object(_clusters, "spans_of", spans),
        patch.object(_synthesis_backward, "spans_of", spans),
        patch.object(_gram_gradient, "spans_of", spans),
    ):
        for operator in operators:
            for precision, N, D in cases_of(operator, architecture, few):
                dtype, setting = PRECISIONS[precision]
                torch.set_float32_matmul_precision(setting)
                found = begin(f"{operator} {precision} {N} x {D}")
                try:
                    LAUNCHES[operator](N, D, dtype)
                finally:
                    torch.set_float32_matmul_precision(before)
                jobs = {**found, **jobs}
    return list(jobs.values()), used


def unused(taken: dict[int | str, set[Any]]) -> list[str]:
    """Return a complaint for each row of the tile table that no case uses on its architectures.

    A row for all architectures must be used on at least one: others may take precedence on most.
    """
    from itm_kernels.triton._tile_table import TABLE

    everywhere = set[Any]().union(*taken.values())
    return [
        f"no case uses {line}"
        for line in TABLE
        if (not line.architectures and line not in everywhere)
        or any(line not in taken.get(name, {line}) for name in line.architectures)
    ]


HEADER = f"{'case':32s}{'kernel':40s}{'tile':18s}{'sm':>6s} regs spill  shared  mma  cp"
HEADING = (
    f"triton {triton.__version__}: key of the source, kernel, tile, sm, "
    f"{', '.join(Use._fields[:-1])}, case, key of the IR"
)


def line_of(job: Job, key: str, use: Use) -> str:
    """Return the line of a job in the recorded table."""
    return "\t".join(map(str, (job.kernel, job.tile, job.architecture, *use[:-1], job.case, key)))


def recorded_uses() -> dict[str, Record]:
    """Return the recorded reports by `source_key_of`, none of which has a complaint."""
    reports = {source: lines[0].split("\t") for source, lines in recorded.read(TABLE).items()}
    return {
        source: Record(line[-1], Use._make((*map(int, line[3:8]), ())))
        for source, line in reports.items()
    }


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", default=list(LAUNCHES))
    parser.add_argument("--architectures", nargs="*", default=[str(name) for name in SHARED])
    parser.add_argument("--few", action="store_true", help="compile the selection of CI")
    parser.add_argument("--update", action="store_true", help="write the recorded table")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> int:
    """Report every kernel; return 1 if there is any complaint."""
    options = parsed()
    start, jobs, bad = time.time(), [], []
    taken: dict[int | str, set[Any]] = {}
    with native_meta():
        for name in options.architectures:
            architecture = int(name) if name.isdigit() else name
            these, taken[architecture] = planned(options.operators, architecture, options.few)
            jobs += without_repeats(these) if options.few else these
    # Only a run of all operators and architectures must use every row of the tile table.
    everything = options.operators == list(LAUNCHES) and len(taken) == len(SHARED)
    if everything:
        bad += unused(taken)
    print(f"{len(jobs)} kernels, planned in {time.time() - start:.0f} s\n{HEADER}", flush=True)
    known = recorded_uses() if options.few else {}
    sampled = never if options.update else recorded.is_sampled
    reports: dict[str, list[str]] = {}
    compiled = 0
    results = uses(jobs, options.processes, FOUND, known, sampled)
    for job, (source, key, use, fresh) in zip(jobs, results, strict=True):
        line = (
            f"{job.case:32s}{job.kernel:40s}{job.tile:18s}{job.architecture!s:>6s} "
            f"{use.registers:4d} {use.spills:5d} {use.shared:7d} {use.products:4d} {use.copies:3d}"
        )
        print(f"{line}  {', '.join(use.complaints)}".rstrip(), flush=True)
        compiled += fresh
        if use.complaints:
            bad += [f"{line}  {', '.join(use.complaints)}"]
        else:
            reports[source] = [line_of(job, key, use)]
    print(f"{len(jobs)} kernels in {time.time() - start:.0f} s, {compiled} of them compiled")
    if everything and options.few:
        if options.update:
            recorded.write(TABLE, reports, HEADING)
        else:
            bad += recorded.outdated(TABLE, HEADING, known, reports)
    print(f"{len(bad)} complaints", *bad, sep="\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
