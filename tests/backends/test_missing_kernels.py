"""Missing kernels cause one warning with the remedy, and unchanged results."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch

import itm_kernels
from itm_kernels import backends, losses, ops
from itm_kernels.backends import MissingKernelsWarning
from processes import run

LARGE = backends.LARGE_BATCH
BUILD = r"ITM_KERNELS_BUILD=1 pip install --no-build-isolation \."
NOT_BUILT = "the extension is not built"


@pytest.fixture
def unbuilt() -> Iterator[None]:
    """Pretend that the kernels are missing and that no warning was given."""
    missing = {"NOT_BUILT": NOT_BUILT, "HAS_TRITON": False, "_warned": set[str]()}
    with patch.multiple(backends, **missing), patch.dict(backends.NATIVE_KERNELS, cpu=frozenset()):
        yield


def rows(count: int) -> torch.Tensor:
    return torch.zeros(count, 2)


def test_a_large_batch_warns_once(unbuilt: None) -> None:
    expected = (
        r"^itm_kernels: max_of_hinges of 1,024 rows on cpu runs in plain PyTorch: "
        rf"the extension is not built\. For the fused kernels, run `{BUILD}` "
        r"in a checkout of itm_kernels, with torch and a C\+\+20 compiler installed$"
    )
    loss = losses.MaxOfHingesLoss()
    with pytest.warns(MissingKernelsWarning, match=expected):
        loss(rows(LARGE), rows(LARGE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(rows(LARGE), rows(LARGE))
        ops.similarity(rows(LARGE), rows(1))


def test_operators_without_sides_warn_by_their_rows(unbuilt: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.similarity(rows(LARGE - 1), rows(1))
    with pytest.warns(MissingKernelsWarning, match="similarity of 1,024 rows on cpu"):
        ops.similarity(rows(LARGE), rows(1))


@pytest.mark.parametrize(
    ("count", "backend"), [(LARGE - 1, "auto"), (LARGE, "reference")], ids=["small", "asked for"]
)
def test_small_batches_and_explicit_requests_do_not_warn(
    unbuilt: None, count: int, backend: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.MaxOfHingesLoss(backend=backend)(rows(count), rows(count))


@pytest.mark.parametrize("chosen", ["category", "message"])
def test_a_standard_filter_switches_it_off(unbuilt: None, chosen: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if chosen == "category":
            warnings.filterwarnings("ignore", category=MissingKernelsWarning)
        else:
            warnings.filterwarnings("ignore", "itm_kernels")
        ops.similarity(rows(LARGE), rows(1))


def test_a_filter_that_raises_does_so_once(unbuilt: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MissingKernelsWarning):
            ops.similarity(rows(LARGE), rows(1))
        ops.similarity(rows(LARGE), rows(1))


def test_graphs_are_traced_without_it(unbuilt: None) -> None:
    """In one graph, which no size of the warning binds."""
    loss = losses.SumOfHingesLoss()
    dynamic = {name: {0: torch.export.Dim("N", min=2)} for name in ("image", "text")}
    inputs = (rows(LARGE), rows(LARGE))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MissingKernelsWarning)
        torch.compile(loss, backend="eager", fullgraph=True)(*inputs)
        exported = torch.export.export(loss, inputs, dynamic_shapes=dynamic)
        exported.module()(rows(3), rows(3))


def on_cuda(sides: tuple[int, int], **patches: object) -> str | None:
    """Choose for a tensor of which only the device is read."""
    like = Mock(device=torch.device("cuda"))
    with patch.multiple(backends, DEVICES=backends.DEVICES, **patches):
        return backends.resolve("ranks", like, "auto", sides)


def test_cuda_tensors_without_triton_warn_once(unbuilt: None) -> None:
    expected = (
        r"^itm_kernels: ranks of 2,000 rows on cuda runs in plain PyTorch: "
        r"triton is not installed\. For the fused kernels, run `pip install triton`, "
        r"which CUDA builds of torch depend on$"
    )
    with pytest.warns(MissingKernelsWarning, match=expected):
        assert on_cuda((3, 2000)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_cuda((3, 2000)) is None
        on_cuda((3, 2000), HAS_TRITON=True, _warned=set())
        on_cuda((3, 3), _warned=set())


# -- an extension that is there and cannot be used -------------------------------------------------

# The package as it is, but for its extension.
CHECKOUT = """
import sys
sys.path.insert(0, {folder!r})
import importlib.abc, importlib.machinery, importlib.util

class Replaced(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "itm_kernels._C":
            return importlib.util.spec_from_file_location(name, {file!r})

sys.meta_path.insert(0, Replaced())
import torch
from itm_kernels import __main__, backends, ops
ops.similarity(torch.zeros({rows}, 2), torch.zeros(1, 2))
print(backends.NOT_BUILT)
print(backends.build_info(), "{{}}" if backends.choose("ranks", "cpu") == "reference" else "used")
assert backends.NOT_BUILT in __main__.info()
"""


def imported_with(extension: Path) -> subprocess.CompletedProcess[str]:
    folder = Path(itm_kernels.__file__).parent.parent
    script = CHECKOUT.format(folder=str(folder), file=str(extension), rows=LARGE)
    done = run(sys.executable, "-c", script, env={"PYTHONWARNINGS": "", "TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MissingKernelsWarning: itm_kernels: ") == 1, done.stderr
    assert "ITM_KERNELS_BUILD=1 pip install --no-build-isolation ." in done.stderr
    return done


def test_an_extension_that_fails_to_load_warns_once(tmp_path: Path) -> None:
    broken = tmp_path / "_C.so"
    broken.write_text("no machine code")
    done = imported_with(broken)
    assert "MissingKernelsWarning: itm_kernels: the extension fails to load: " in done.stderr
    assert done.stdout.startswith("the extension fails to load: ")


def test_an_extension_built_for_another_torch_warns_once(tmp_path: Path) -> None:
    other = tmp_path / "_C.py"
    other.write_text("def build_info(): return {'torch': '2.3.1', 'operators': {'cpu': ['ranks']}}")
    done = imported_with(other)
    reason = f"the extension is built for torch 2.3.1, not for {torch.__version__}"
    assert f"MissingKernelsWarning: itm_kernels: {reason}. All operators run in" in done.stderr
    assert done.stdout.splitlines() == [reason, "{} {}"]


def test_an_extension_for_another_python_is_named(tmp_path: Path) -> None:
    from itm_kernels import _extension

    (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    with (
        patch.object(_extension, "__file__", str(tmp_path / "_extension.py")),
        patch.object(_extension, "NAME", "itm_kernels._missing"),
    ):
        found = _extension.load()
    assert found.reason == (
        "the extension is built for another Python (_C.cpython-39-x86_64-linux-gnu.so)"
    )
    assert found.module is None and not found.warned


def test_patch_releases_of_torch_share_an_extension() -> None:
    from itm_kernels import _extension

    release = ".".join(torch.__version__.split(".")[:2])
    for built, used in ((f"{release}.7", True), (f"{release}0.0", False)):
        module = Mock(build_info=lambda built=built: {"torch": built})
        with patch("importlib.import_module", return_value=module), warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingKernelsWarning)
            assert (_extension.load().module is module) is used
