"""Settings of the whole suite, and the fixtures of the tests that hold for every loss."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from compiled import left_out
from complete import Complete
from eager_backend import as_native
from faster import exempt_objects, in_one_chunk, keep_freed_memory, measure_no_guards
from graphs import BACKENDS
from interpreted import INTERPRETED
from itm_kernels import backends, synthesis
from kernels import MARKS, running
from loss_cases import CASES, Case

# Inductor's cache does not distinguish instruction sets: code that it compiled for AVX-512 gives
# wrong results in a process that is limited to AVX2.
if "ATEN_CPU_CAPABILITY" in os.environ:
    _own = Path(tempfile.gettempdir()) / f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_own))

# Tests are small: more threads would only wait for one another, above all on a busy machine.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for processes that tests start

keep_freed_memory()
# Dynamo collects garbage after every graph, 40 ms: `pytest_collection_finish` makes it rare.
os.environ.setdefault("TORCH_DYNAMO_RUN_GC_AFTER_COMPILE", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`, for the files that `tools.gpu_check.suite` names, and `--complete`."""
    parser.getgroup("itm_kernels").addoption(
        "--device", default="cpu", help="the device of tensors, unless a test names another"
    )
    parser.getgroup("itm_kernels").addoption(
        "--complete", action="store_true", help="fail if a test is skipped or no kernel ran"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Fail a run that skips tests or runs no kernel: `tests/support/complete.py`."""
    if config.getoption("--complete"):
        config.pluginmanager.register(Complete())


def pytest_report_header() -> str:
    """Report which instruction sets this CPU lacks."""
    return left_out()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exempt torch and the tests from garbage collection: 16% of the time of compiling, then 8%."""
    exempt_objects()
    gc.set_threshold(20_000, 50, 100)
    if any(item.get_closest_marker("compiles") for item in session.items):
        measure_no_guards()


def pytest_runtestloop(session: pytest.Session) -> object:
    """Run the tests in one chunk of the interpreter's stack of frames."""
    plugins = session.config.pluginmanager
    others = [plugin for name, plugin in plugins.list_name_plugin() if name != "main"]
    loop = plugins.subset_hook_caller("pytest_runtestloop", others)
    return in_one_chunk(lambda: loop(session=session))


# The markers that make selects by: of a folder, and of a value of the parameter `backend`.
FOLDERS = {"cpu": "native", "cuda": "emulated", "triton": "triton"}
CHOICES = {"auto": "native", "native": "native", "triton": "triton"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test with the backend whose kernels it runs."""
    parent, folder = item.path.parts[-3:-1]
    callspec = getattr(item, "callspec", None)
    chosen = callspec.params.get("backend") if callspec else None
    if parent == "backends" and folder in FOLDERS:
        item.add_marker(FOLDERS[folder])
    if isinstance(chosen, str) and chosen in CHOICES:
        item.add_marker(CHOICES[chosen])


@pytest.fixture(scope="module", autouse=True)
def freeze_what_remains() -> Iterator[None]:
    """Exempt what a module's tests leave behind: a collection would otherwise take up to 1 s."""
    yield
    exempt_objects()


@pytest.fixture(scope="session", autouse=True)
def interpreter() -> Iterator[None]:
    """Make Triton's interpreter cache its own work."""
    if not INTERPRETED:
        yield
        return
    from quick_interpreter import QUICK, using

    with using(QUICK):
        yield


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Make tensors on the device that the command line names."""
    name = request.config.getoption("device")
    if name == "cpu":  # torch's default is faster than the same device set explicitly
        yield name
        return
    torch.set_default_device(name)
    yield name
    torch.set_default_device(None)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, on_device: str) -> Iterator[str]:
    """Run on the reference, on operators in eager PyTorch, and on the kernels of this build.

    "triton" prefers interpreted kernels where there are any: a loss runs several operators.
    """
    if request.param == "eager" and on_device != "cpu":
        pytest.skip("operators in eager PyTorch are the CPU's")
    if request.param == "triton":
        with patch.dict(backends.PREFERENCE, cpu=("triton",)):
            yield "auto"
        return
    if request.param == "auto":
        yield "auto"
        return
    with as_native():
        yield "native" if request.param == "eager" else "reference"


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let k-means take two of its ten equal steps, which a graph unrolls: the first and another.

    Ten take half a minute in symbols. `test_compiles_into_one_graph` has all of them.
    """
    kmeans = synthesis.fused_kmeans

    def short(x: Tensor, member: Tensor | None, K: int, iterations: int, *how: object) -> object:
        assert iterations == 10
        return kmeans(x, member, K, 2, *how)

    monkeypatch.setattr(synthesis, "fused_kmeans", short)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Run for every loss."""
    return request.param


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, marks in MARKS.items()])
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Run on the kernels of every backend, unless `kernels.on` or `kernels.cases` names some."""
    with running(request.param) as namespace:
        yield namespace


@pytest.fixture
def backend_name(kernels: Any) -> str:
    """Return the `backend` argument that makes a public function run on `kernels`."""
    return "triton" if kernels.name == "itm_triton" else "native"
