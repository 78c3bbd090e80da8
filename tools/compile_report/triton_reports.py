"""Compile the planned Triton kernels in separate processes and report their resource use.

A kernel whose source is recorded is not compiled. Otherwise its IR is made, which takes a hundred
times as long as the hash of its source; a kernel whose IR is recorded is not compiled either.
"""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import triton

from tools.compile_report import triton_binary
from tools.compile_report.triton_binary import Use
from tools.compile_report.triton_jobs import COMPILE, Job, StandIn, key_of, source_key_of


def compiled(job: Job) -> Use:
    """Compile a kernel and return its resource use."""
    triton.runtime.driver.set_active(StandIn(job.architecture))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            return triton_binary.use_of(COMPILE(*job.arguments), job.architecture)
        except Exception as error:  # the compiler raises many types
            return failed(error)
        finally:
            # A later launch that found the kernel in the cache would run it instead of planning it.
            job.function.device_caches[job.architecture][0].clear()


def failed(error: Exception) -> Use:
    """Return the report of a kernel that does not compile."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return Use(0, 0, 0, 0, 0, (f"{type(error).__name__}: {' '.join(lines)[:200]}",))


class Record(NamedTuple):
    """A recorded report without complaints."""

    key: str
    use: Use


class Found(NamedTuple):
    """The report of one job."""

    source: str  # `source_key_of` the job
    key: str  # `key_of` the job
    use: Use
    compiled: bool  # by this run; otherwise recorded or stored by an earlier run


class _Pending(NamedTuple):
    """State that forked processes inherit from their parent, since a job cannot be pickled."""

    jobs: Sequence[Job]
    folder: Path
    known: Mapping[str, Record]
    known_keys: Mapping[str, Use]
    sampled: Callable[[str], bool]


_pending: _Pending | None = None


def _found(number: int) -> Found:
    assert _pending is not None
    job, folder, known, known_keys, sampled = _pending.jobs[number], *_pending[1:]
    source = key = ""
    try:
        source = source_key_of(job)
        record = known.get(source)
        if record is not None and not sampled(record.key):
            return Found(source, *record, False)
        key = key_of(job)
    except Exception as error:
        return Found(source, key, failed(error), True)
    file = folder / f"{key}.json"
    again = record is not None or (key in known_keys and sampled(key))
    if key in known_keys and not again:
        return Found(source, key, known_keys[key], False)
    if file.exists() and not again:
        return Found(source, key, Use._make((*json.loads(file.read_text()), ())), False)
    use = compiled(job)
    if not use.complaints:
        file.write_text(json.dumps(use[:-1]))
    if again:
        record = record or Record(key, known_keys[key])
        if record != (key, use):
            use = use._replace(complaints=(*use.complaints, f"recorded as {tuple(record)}"))
    return Found(source, key, use, True)


def never(key: str) -> bool:
    """Select no recorded kernel for recompilation."""
    return False


def uses(
    jobs: Sequence[Job],
    processes: int,
    folder: Path,
    known: Mapping[str, Record] | None = None,
    sampled: Callable[[str], bool] = never,
) -> Iterator[Found]:
    """Yield the report of every job, in order.

    Args:
        jobs: the kernels.
        processes: the number of processes that compile.
        folder: stores the reports without complaints of this and earlier runs.
        known: the recorded reports by `source_key_of`.
        sampled: selects recorded kernels to recompile; a difference is a complaint.
    """
    global _pending
    folder.mkdir(parents=True, exist_ok=True)
    known = known or {}
    known_keys = {record.key: record.use for record in known.values()}
    _pending = _Pending(jobs, folder, known, known_keys, sampled)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_found, range(len(jobs)), chunksize=4)
