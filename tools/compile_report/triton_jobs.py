"""Triton kernels compiled as their launchers would launch them, for GPUs that are not here.

A stand-in driver names the architecture. Launchers run on meta tensors and launch nothing: every
launch becomes a job, jobs that would compile the same are one, and processes of their own compile
them. What was found is kept by the hash of all that went in.
"""

import contextlib
import hashlib
import heapq
import json
import multiprocessing
import os
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tools.compile_report import triton_binary
from tools.compile_report.triton_binary import Use

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # 3.10 turns the default
COMPILE = JITFunction._do_compile
TILE = ("ROWS", "COLUMNS", "DEPTH")
OPERANDS = ("x", "rows", "weights")
# Constants that only say how loads are aligned or masked: divisors, and D where a kernel is told.
LOADS = ("ALIGN", "EVEN", "DIVISOR", "WIDTH")


class StandIn:
    """A driver without a device."""

    def __init__(self, architecture: int | str) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """Return the architecture to compile for."""
        amd = isinstance(self.architecture, str)
        return GPUTarget("hip" if amd else "cuda", self.architecture, 64 if amd else 32)

    def get_current_device(self) -> int | str:
        """Return the architecture: each has its own cache of kernels."""
        return self.architecture

    def get_current_stream(self, device: object) -> int:
        """Return the default stream."""
        return 0


class Job(NamedTuple):
    """A kernel to be compiled."""

    case: str
    architecture: int | str
    function: JITFunction
    arguments: tuple[Any, ...]  # of COMPILE
    values: dict[str, str]  # parameter -> value of a constant, or type and what is known of it
    key: str  # the same for jobs that compile the same

    @property
    def kernel(self) -> str:
        """Return module.function."""
        return f"{self.function.fn.__module__.split('.')[-1]}.{self.function.__name__}"

    @property
    def tile(self) -> str:
        """Sizes, warps and stages."""
        sizes = "x".join(self.values[size] for size in TILE if size in self.values)
        return f"{sizes} {self.values['warps']}w {self.values['stages']}s"

    def shows(self) -> set[Hashable]:
        """Return what a compilation shows: every value with its tile, and all branches together.

        How many registers a kernel needs depends on its branches and operands at once; how its
        loads are aligned or masked, on little else. To a compiler fp16 is what bf16 is. Kernels of
        a single element fold into less, and those of fp64 may spill.
        """
        here, values = (self.kernel, self.architecture, self.tile), self.values
        operands = [values.get(name, "").split(" ")[0] for name in OPERANDS]
        shown: set[Hashable] = {(*here, value) for value in values.items()}
        shown.add((*here, *operands, values.get("PARTS"), values.get("PRECISION")))
        if "*fp64" not in operands[:2] and values.get("D") != "1":
            constants = [each.name for each in self.function.params if each.is_constexpr]
            together = [(name, values[name]) for name in constants if name not in LOADS]
            halves = [operand.replace("bf16", "fp16") for operand in operands]
            shown.add((*here, *halves, *together))
        return shown


@contextlib.contextmanager
def planning(case: str, architecture: int | str) -> Iterator[dict[str, Job]]:
    """Collect the jobs of every kernel that is launched, by key; compile and launch none."""
    jobs: dict[str, Job] = {}

    def note(
        self: JITFunction,
        key: str,
        signature: dict[str, str],
        device: int | str,
        constants: dict[tuple[int, ...], Any],
        options: Any,
        attributes: dict[tuple[int, ...], Any],
        warmup: bool,
    ) -> None:
        names = [parameter.name for parameter in self.params]
        known = {names[path[0]]: f"{found}" for path, found in attributes.items() if found}
        values = {name: f"{of} {known.get(name, '')}".strip() for name, of in signature.items()}
        values |= {names[path[0]]: str(value) for path, value in constants.items()}
        values |= {"warps": str(options.num_warps), "stages": str(options.num_stages)}
        backend = self.device_caches[device][3]
        source = ASTSource(self, signature, constants, attributes).hash()
        parts = triton.__version__, backend.hash(), source, options.hash()
        same = hashlib.sha256(repr(parts).encode()).hexdigest()
        arguments = self, key, signature, device, constants, options, attributes, True
        jobs.setdefault(same, Job(case, architecture, self, arguments, values, same))

    triton.runtime.driver.set_active(StandIn(architecture))
    JITFunction._do_compile = note
    try:
        yield jobs
    finally:
        JITFunction._do_compile = COMPILE


def without_repeats(jobs: Sequence[Job]) -> list[Job]:
    """Return the fewest jobs, nearly, that show all that these jobs show."""
    shows = [job.shows() for job in jobs]
    todo = set[Hashable]().union(*shows)
    chosen = []
    # What a job adds only shrinks: one that still adds as much as was expected of the best is best.
    expected = [(-len(shown), place) for place, shown in enumerate(shows)]
    heapq.heapify(expected)
    while todo:
        added, place = heapq.heappop(expected)
        adds = len(shows[place] & todo)
        if adds == -added:
            chosen.append(place)
            todo -= shows[place]
        elif adds:
            heapq.heappush(expected, (-adds, place))
    return [jobs[place] for place in sorted(chosen)]


def compiled(job: Job) -> Use:
    """Compile a kernel, and return what it uses."""
    triton.runtime.driver.set_active(StandIn(job.architecture))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            return triton_binary.use_of(COMPILE(*job.arguments), job.architecture)
        except Exception as error:  # whatever the compiler raises
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Use(0, 0, 0, 0, 0, (f"{type(error).__name__}: {' '.join(lines)[:200]}",))
        finally:
            # A launch that finds a kernel here would not be planned but go on to a device.
            job.function.device_caches[job.architecture][0].clear()


JOBS: Sequence[Job] = ()  # a job cannot be pickled: the processes find it here


def _compiled(number: int) -> Use:
    return compiled(JOBS[number])


def uses(jobs: Sequence[Job], processes: int, folder: Path) -> Iterator[Use]:
    """Yield what every job's kernel uses, in order; a folder keeps those without complaints."""
    global JOBS
    JOBS = jobs
    # What a rule or a reading finds changes with the file that holds them.
    rules = hashlib.sha256(Path(triton_binary.__file__).read_bytes()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{job.key[:32]}-{rules}.json" for job in jobs]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        fresh = iter(pool.imap(_compiled, missing))
        for file in files:
            if file.exists():
                yield Use._make((*json.loads(file.read_text())[:-1], ()))
                continue
            use = next(fresh)
            if not use.complaints:
                file.write_text(json.dumps(use))
            yield use
