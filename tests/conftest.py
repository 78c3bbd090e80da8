"""Settings of the whole suite, and what the tests that hold for every loss run over."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from compiled import left_out
from complete import Complete
from eager_backend import as_native
from interpreted import INTERPRETED
from itm_kernels import backends
from kernels import MARKS, running
from loss_cases import CASES, Case

# Inductor's cache does not tell instruction sets apart: what it compiled for AVX-512 gives wrong
# numbers to a process that is told to use AVX2.
if "ATEN_CPU_CAPABILITY" in os.environ:
    _own = Path(tempfile.gettempdir()) / f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_own))

# Tests are small: threads would only wait for one another, most of all on a busy machine.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--device`, for the files that `tools.gpu_check.suite` names, and `--complete`."""
    parser.getgroup("itm_kernels").addoption(
        "--device", default="cpu", help="what tensors live on unless a test says otherwise"
    )
    parser.getgroup("itm_kernels").addoption(
        "--complete", action="store_true", help="fail if a test is skipped or no kernel ran"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hold a run to what it is there for: `tests/support/complete.py`."""
    if config.getoption("--complete"):
        config.pluginmanager.register(Complete())


def pytest_report_header() -> str:
    """Say which instruction sets this CPU leaves out."""
    return left_out()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the collector from torch and the tests: it took 16% of what compiles losses, then 8%."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


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


@pytest.fixture(scope="session", autouse=True)
def interpreter() -> Iterator[None]:
    """Keep Triton's interpreter from repeating its own work."""
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
    if name == "cpu":  # torch's own default is faster than the same one asked for
        yield name
        return
    torch.set_default_device(name)
    yield name
    torch.set_default_device(None)


BACKENDS = ["reference", "eager", "auto"]
if INTERPRETED:
    BACKENDS.append("triton")  # `make test-triton`


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, on_device: str) -> Iterator[str]:
    """Run on the formula, on operators in eager PyTorch, and on what this build has kernels for.

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
    """Return what a public function is given to run on `kernels`."""
    return "triton" if kernels.name == "itm_triton" else "native"
