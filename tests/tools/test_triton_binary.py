"""The check of compiled kernels: one toy kernel for every fault that it reports.

`make test-triton-compile`: Triton decides when a kernel is defined whether it is interpreted.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from itm_kernels import backends

if not backends.HAS_TRITON or backends.INTERPRETED:
    pytest.skip("triton needed, not interpreted", allow_module_level=True)

import triton
import triton.language as tl

from tools.compile_report import recorded
from tools.compile_report.triton_binary import AMD, SHARED
from tools.compile_report.triton_jobs import (
    Job,
    key_of,
    planning,
    source_key_of,
    without_repeats,
)
from tools.compile_report.triton_reports import Record, compiled, uses


@triton.jit
def _product(x, y, out, D, R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr):
    depth = tl.arange(0, DEPTH)
    x_at = x + tl.arange(0, R)[:, None] * D + depth[None, :]
    y_at = y + tl.arange(0, C)[None, :] * D + depth[:, None]
    scores = tl.zeros((R, C), tl.float32)
    for first in range(0, D, DEPTH):
        scores = tl.dot(tl.load(x_at + first), tl.load(y_at + first), scores)
    tl.store(out + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :], scores)


def product(R: int = 64, C: int = 64, depth: int = 64, D: int = 1024, **options: int) -> None:
    x, y = (torch.empty((size, D), dtype=torch.bfloat16, device="meta") for size in (R, C))
    options = {"num_warps": 4, "num_stages": 3, **options}
    _product[(1,)](x, y, torch.empty((R, C), device="meta"), D, R, C, depth, **options)


@triton.jit
def _kept(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(out + at, values * tl.sum(values))


def kept(size: int) -> None:
    x = torch.empty(size, device="meta")
    _kept[(1,)](x, x, size, num_warps=1)


KERNEL = """import triton
import triton.language as tl


@triton.jit
def kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(out + at, values)
"""


def job_of_source(folder: Path, source: str, size: int = 64, architecture: int = 80) -> Job:
    folder.mkdir()
    (folder / "kernels.py").write_text(source)
    spec = importlib.util.spec_from_file_location("kernels", folder / "kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.empty(size, device="meta")
    return job_of(lambda: module.kernel[(1,)](x, x, size), architecture)


def job_of(launch: Callable[[], None], architecture: int | str) -> Job:
    with planning("toy", architecture) as jobs:
        launch()
    (job,) = jobs.values()
    return job


@pytest.mark.parametrize("architecture", SHARED)
def test_a_kernel_without_faults_has_no_complaints(architecture: int | str) -> None:
    use = compiled(job_of(product, architecture))
    assert use.complaints == ()
    assert min(use.registers, use.shared, use.products) > 0
    assert use.spills == 0
    assert (use.copies > 0) == (architecture != AMD)


@pytest.mark.parametrize(
    ("complaint", "architecture", "launch"),
    [
        # Threads with 512 numbers each: 32 with 255 registers, on AMD 64 with 512.
        ("spills", 80, lambda: kept(1 << 14)),
        ("spills", 90, lambda: kept(1 << 14)),
        ("spills", AMD, lambda: kept(1 << 15)),
        # 4 stages of 2 x 128 x 128 numbers are 256 KB.
        ("shared memory", 80, lambda: product(128, 128, 128, num_warps=8, num_stages=4)),
        ("shared memory", 90, lambda: product(128, 128, 128, num_warps=8, num_stages=5)),
        *(
            ("shared memory", name, lambda: product(128, 128, 64, num_warps=8, num_stages=5))
            for name in (86, 89, 120)  # 4 x 2 x 128 x 64 numbers are 128 KB
        ),
        # A warp group multiplies 64 rows at least: 16 rows go to units of half the rate.
        ("no tensor cores", 90, lambda: product(16, 16)),
        ("no tensor cores", 100, lambda: product(16, 16)),
        # One stage; and rows that end anywhere, of which 2 bytes are known to be aligned.
        ("loads not pipelined", 80, lambda: product(num_stages=1)),
        ("loads not pipelined", 90, lambda: product(D=333)),
        ("loads not pipelined", 100, lambda: product(D=333)),
        ("CompilationError", 80, lambda: product(48)),  # no power of 2
    ],
)
def test_a_fault_is_found(
    complaint: str, architecture: int | str, launch: Callable[[], None]
) -> None:
    (found, *_) = [*compiled(job_of(launch, architecture)).complaints, "none"]
    assert found.startswith(complaint)


def test_a_launch_that_compiles_the_same_is_one_job() -> None:
    with planning("toy", 90) as jobs:
        product()
        product(D=2048)  # as divisible
        product(D=333)
    assert len(jobs) == 2


def test_repeats_are_left_out_and_nothing_else() -> None:
    jobs = []
    for architecture in (80, 90):
        with planning("toy", architecture) as found:
            for D in (1024, 500):
                for stages in (2, 3):
                    product(D=D, num_stages=stages)
        jobs += found.values()
    few = without_repeats(jobs)
    assert set().union(*(job.shows() for job in few)) == set().union(*(job.shows() for job in jobs))
    assert len(few) == len(jobs) == 8  # every D with every tile, on every architecture
    assert without_repeats([*jobs, *jobs]) == few


def test_passes_are_kept_and_failures_are_not(tmp_path: Path) -> None:
    jobs = [job_of(product, 80), job_of(lambda: product(num_stages=1), 80)]
    first = list(uses(jobs, 2, tmp_path))
    assert [bool(found.use.complaints) for found in first] == [False, True]
    assert all(found.compiled for found in first)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace(f"[{first[0].use.registers},", "[777,"))
    kept, failed = uses(jobs, 2, tmp_path)
    assert kept == first[0]._replace(use=first[0].use._replace(registers=777), compiled=False)
    assert failed == first[1]


def test_a_recorded_kernel_is_compiled_again_only_in_the_sample(tmp_path: Path) -> None:
    job = job_of(product, 80)
    (first,) = uses([job], 1, tmp_path / "first")
    record = Record(first.key, first.use)
    (again,) = uses([job], 1, tmp_path / "again", {first.source: record}, lambda key: True)
    assert again == first
    wrong = Record(first.key, first.use._replace(registers=777))
    # Recorded under this source, and under another that has the same IR.
    for source in (first.source, "another"):
        (unseen,) = uses([job], 1, tmp_path, {source: wrong}, lambda key: False)
        assert (unseen.use.registers, unseen.compiled) == (777, False)
        assert (unseen.source, unseen.key) == (first.source, first.key)
        (seen,) = uses([job], 1, tmp_path, {source: wrong}, lambda key: True)
        assert seen.use.registers == first.use.registers
        assert seen.use.complaints == (f"recorded as {tuple(wrong)}",)


def test_the_sample_finds_a_source_that_is_recorded_with_other_ir(tmp_path: Path) -> None:
    job = job_of(product, 80)
    (first,) = uses([job], 1, tmp_path)
    other = Record("0" * 16, first.use)
    (seen,) = uses([job], 1, tmp_path, {first.source: other}, lambda key: True)
    assert seen.use.complaints == (f"recorded as {tuple(other)}",)
    assert seen.key == first.key


@pytest.mark.parametrize("key", [key_of, source_key_of])
def test_a_key_depends_on_the_code_and_not_on_comments(
    tmp_path: Path, key: Callable[[Job], str]
) -> None:
    commented = KERNEL.replace("    at =", "    # A comment.\n    at =")
    doubled = KERNEL.replace("at, values)", "at, 2 * values)")
    first = key(job_of_source(tmp_path / "first", KERNEL))
    assert key(job_of_source(tmp_path / "second", KERNEL)) == first
    assert key(job_of_source(tmp_path / "commented", commented)) == first
    assert key(job_of_source(tmp_path / "doubled", doubled)) != first
    assert key(job_of_source(tmp_path / "size", KERNEL, size=32)) != first
    assert key(job_of_source(tmp_path / "architecture", KERNEL, architecture=90)) != first


CALLING = """import types

import triton
import triton.language as tl

FACTOR = tl.constexpr(2)
limits = types.ModuleType("limits")
limits.LOWEST = tl.constexpr(3)


@triton.constexpr_function
def half(size):
    return size // 2


@triton.jit
def scaled(values, LEFT: tl.constexpr):
    '''Scale twice.'''
    if LEFT > 0:
        values = scaled(values, LEFT - 1)
    return values * FACTOR + limits.LOWEST


@triton.jit
def kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, half(SIZE))
    tl.store(out + at, scaled(tl.load(x + at), 1))
"""


@pytest.mark.parametrize("key", [key_of, source_key_of])
def test_a_key_depends_on_functions_and_constants_of_a_kernel(
    tmp_path: Path, key: Callable[[Job], str]
) -> None:
    first = key(job_of_source(tmp_path / "first", CALLING))
    documented = CALLING.replace("Scale twice", "Multiply")
    assert key(job_of_source(tmp_path / "documented", documented)) == first
    changes = (
        *(("constexpr(2)", "constexpr(4)"), ("constexpr(3)", "constexpr(5)"), ("// 2", "// 4")),
        *(("values * F", "values + F"), ("LEFT > 0", "LEFT > 1")),
    )
    for number, change in enumerate(changes):
        changed = CALLING.replace(*change)
        assert changed != CALLING
        assert key(job_of_source(tmp_path / str(number), changed)) != first


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, reports = tmp_path / "table.tsv", {"b0": ["x\t1", "y\t2"], "a0": ["z\t3"]}
    recorded.write(path, reports, "nvcc 13: key, kernel")
    assert recorded.read(path) == reports
    assert recorded.outdated(path, "nvcc 13: key, kernel", reports, reports) == []
    (complaint,) = recorded.outdated(path, "nvcc 13: key, kernel", reports, ["a0", "c0"])
    assert complaint.startswith("2 reports in table.tsv are missing or out of date")
    assert recorded.outdated(path, "nvcc 14: key, kernel", reports, ["a0", "c0"]) == []


def test_a_view_that_begins_anywhere_compiles_as_aligned_rows_do() -> None:
    from itm_kernels.triton._hardest import hardest

    found = []
    for first in (0, 1):
        rows = torch.empty((256, first + 1024), dtype=torch.bfloat16, device="meta")[:, first:]
        with planning("toy", 90) as jobs:
            hardest(rows, rows, None, None, None, False)
        found.append(set(jobs))
    assert found[0] == found[1]


def test_tune_compiles_every_candidate_ahead() -> None:
    from tools.gpu_check import precompile, tune

    jobs = precompile.planned(90, ["max_of_hinges forward"])
    scores = [job for job in jobs if job.kernel == "_hardest._hardest_kernel"]
    for kind, operand in (("half", "*bf16"), ("tf32", "*fp32")):
        found = {job.tile for job in scores if job.values["x"].startswith(operand)}
        candidates = [f"{r}x{c}x{d} {w}w {s}s" for r, c, d, w, s in tune.TILES[kind]]
        assert found == set(candidates)
    assert any(" 16w " in job.tile for job in scores)
