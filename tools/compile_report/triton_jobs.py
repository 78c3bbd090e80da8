"""Compile Triton kernels as their launchers would launch them, for GPUs that are not present.

A stand-in driver reports the architecture. Launchers run on meta tensors and launch nothing: every
launch becomes a job, and launches that compile to the same kernel share one. A report is stored
under hashes of everything that it depends on (`recorded.py`).
"""

import contextlib
import hashlib
import heapq
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from tools.compile_report import recorded, triton_binary
from tools.compile_report.triton_sources import source_of, value_of

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # the default changes in 3.10
PATHS = ("extern_libs",)
COMPILE = JITFunction._do_compile
TILE = ("ROWS", "COLUMNS", "DEPTH")
OPERANDS = ("x", "rows", "weights")
# Constants that only affect alignment and masks of loads: divisors, and D where it is a constant.
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
        """Return the architecture, so that each has its own cache of kernels."""
        return self.architecture

    def get_current_stream(self, device: object) -> int:
        """Return the default stream."""
        return 0


class Job(NamedTuple):
    """A kernel to be compiled."""

    case: str
    architecture: int | str
    function: JITFunction
    arguments: tuple[Any, ...]  # arguments of COMPILE
    values: dict[str, str]  # parameter -> value of a constant, or type and attributes
    constants: tuple[str, ...]  # parameters that are declared as constants
    key: str  # equal for jobs that compile to the same kernel

    @property
    def kernel(self) -> str:
        """Return module.function."""
        return f"{self.function.fn.__module__.split('.')[-1]}.{self.function.__name__}"

    @property
    def tile(self) -> str:
        """Return sizes, warps and stages."""
        sizes = "x".join(self.values[size] for size in TILE if size in self.values)
        return f"{sizes} {self.values['warps']}w {self.values['stages']}s"

    def shows(self) -> set[Hashable]:
        """Return the features that a compilation covers: values with their tile, and all branches.

        The registers of a kernel depend on the combination of its branches and operands, but hardly
        on the alignment and masks of its loads. The compiler treats fp16 like bf16. Kernels of a
        single element simplify to less code, and those of fp64 may spill: neither covers branches.
        """
        here, values = (self.kernel, self.architecture, self.tile), self.values
        operands = [values.get(name, "").split(" ")[0] for name in OPERANDS]
        shown: set[Hashable] = {(*here, value) for value in values.items()}
        shown.add((*here, *operands, values.get("PARTS"), values.get("PRECISION")))
        if "*fp64" not in operands[:2] and values.get("D") != "1":
            together = [(name, values[name]) for name in self.constants if name not in LOADS]
            halves = [operand.replace("bf16", "fp16") for operand in operands]
            shown.add((*here, *halves, *together))
        return shown


class Planned:
    """A kernel that launches nothing: Triton finds it instead of planning a launch again."""

    function = packed_metadata = None

    def __init__(self, job: Job, found: Callable[[Job], None]) -> None:
        self.job, self.found = job, found

    def launch_metadata(self, *arguments: object) -> None:
        """Return nothing, as without hooks."""

    def run(self, *arguments: object) -> None:
        """Note the job, and launch nothing."""
        self.found(self.job)


def _names(signature: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield the path and name of every parameter and of every member of a named tuple."""
    for place, (name, of) in enumerate(signature.items()):
        if isinstance(of, tuple) and hasattr(of, "_fields"):
            yield from (((place, k), member) for k, member in enumerate(of._fields))
        else:
            yield (place,), name


def _type(signature: dict[str, Any], path: tuple[int, ...]) -> str:
    of: Any = list(signature.values())
    for place in path:
        of = of[place]
    return str(of)


@contextlib.contextmanager
def planner(architecture: int | str) -> Iterator[Callable[[str], dict[str, Job]]]:
    """Provide a function that begins a case: it returns a dictionary of jobs, by key.

    The dictionary receives a job for every kernel that is launched until the next case begins, and
    nothing is compiled or launched. A kernel is described once for all cases.
    """
    case, jobs = "", dict[str, Job]()
    planned: list[tuple[dict[str, Any], str]] = []

    def begin(name: str) -> dict[str, Job]:
        nonlocal case, jobs
        case, jobs = name, {}
        return jobs

    def found(job: Job) -> None:
        jobs.setdefault(job.key, job)

    def note(
        self: JITFunction,
        key: str,
        signature: dict[str, Any],
        device: int | str,
        constants: dict[tuple[int, ...], Any],
        options: Any,
        attributes: dict[tuple[int, ...], Any],
        warmup: bool,
    ) -> None:
        names = dict(_names(signature))
        known = {names[path]: f"{found}" for path, found in attributes.items() if found}
        values = {name: _type(signature, path) for path, name in names.items()}
        values = {name: f"{of} {known.get(name, '')}".strip() for name, of in values.items()}
        values |= {names[path]: str(getattr(c, "value", c)) for path, c in constants.items()}
        constant = {each.name for each in self.params if each.is_constexpr}
        constant |= {names[path] for path, c in constants.items() if isinstance(c, tl.constexpr)}
        declared = tuple(sorted(constant))
        values |= {"warps": str(options.num_warps), "stages": str(options.num_stages)}
        cache, _, _, backend, _ = self.device_caches[device]
        source = ASTSource(self, signature, constants, attributes).hash()
        parts = triton.__version__, backend.hash(), source, options.hash()
        same = hashlib.sha256(repr(parts).encode()).hexdigest()
        arguments = self, key, signature, device, constants, options, attributes, True
        job = Job(case, architecture, self, arguments, values, declared, same)
        cache[key] = Planned(job, found)
        planned.append((cache, key))
        found(job)

    triton.runtime.driver.set_active(StandIn(architecture))
    JITFunction._do_compile = note
    try:
        yield begin
    finally:
        JITFunction._do_compile = COMPILE
        for cache, key in planned:
            del cache[key]


@contextlib.contextmanager
def planning(case: str, architecture: int | str) -> Iterator[dict[str, Job]]:
    """Collect a job for every launched kernel, by key, without compiling or launching it."""
    with planner(architecture) as begin:
        yield begin(case)


def without_repeats(jobs: Sequence[Job]) -> list[Job]:
    """Return a nearly minimal selection of jobs that covers all features (greedy set cover)."""
    shows = [job.shows() for job in jobs]
    todo = set[Hashable]().union(*shows)
    chosen = []
    # Gains only decrease: if the job on top of the heap still has its gain, it is the best one.
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


def _context_of(job: Job) -> tuple[Any, tuple[object, ...]]:
    """Return the backend of a job, and what its report depends on besides the code."""
    triton.runtime.driver.set_active(StandIn(job.architecture))
    backend = make_backend(triton.runtime.driver.active.get_current_target())
    rules = recorded.code_of(Path(triton_binary.__file__))
    # Paths differ between machines; the libraries behind them belong to the version of Triton.
    options = vars(job.arguments[5]).items()
    settings = sorted((name, value) for name, value in options if name not in PATHS)
    return backend, ((triton.__version__, backend.hash(), rules), settings)


def source_key_of(job: Job) -> str:
    """Return the hash of everything that a kernel's IR and report depend on: code and arguments."""
    function, _, signature, _, constants, _, attributes, _ = job.arguments
    known = sorted((path, value_of(constant)) for path, constant in constants.items())
    _, context = _context_of(job)
    arguments = sorted(signature.items()), known, sorted(attributes.items())
    return recorded.key_of(context, source_of(function), arguments)


def key_of(job: Job) -> str:
    """Return the hash of everything that a kernel's report depends on: IR, options and versions."""
    backend, (versions, settings) = _context_of(job)
    function, _, signature, _, constants, options, attributes, _ = job.arguments
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(function, signature, constants, attributes)
    functions = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(backend.target, options, *functions, context)
    return recorded.key_of(versions, settings, module.str_nodebug())
