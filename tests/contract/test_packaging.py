"""The package as a whole: version, build, imports, size and names of files."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

import pytest
import torch

import itm_kernels
from itm_kernels import backends
from loss_cases import CASES
from processes import ROOT, run

PACKAGE = ROOT / "itm_kernels"
MODULES = sorted(PACKAGE.rglob("*.py"))


# -- version ---------------------------------------------------------------------------------------


def test_version_is_written_once() -> None:
    number = re.compile(rf"(?<![\d.]){re.escape(itm_kernels.__version__)}(?![\d.])")
    places = [ROOT / name for name in ("setup.py", "pyproject.toml", "Makefile")]
    places += [*MODULES, *(ROOT / "csrc").rglob("*.*")]
    found = [
        path.relative_to(ROOT).as_posix() for path in places if number.search(path.read_text())
    ]
    assert found == ["itm_kernels/_version.py"]


def test_version_of_the_build_is_the_packages() -> None:
    built = run(sys.executable, "setup.py", "--version", env={"ITM_KERNELS_BUILD": "0"})
    assert built.stdout.split()[-1:] == [itm_kernels.__version__], built.stderr


def installed() -> bool:
    try:
        metadata("itm-kernels")
    except PackageNotFoundError:
        return False
    return True


def test_version_of_the_installed_package() -> None:
    # A checkout that is only on the path has no metadata to disagree with.
    assert not installed() or version("itm-kernels") == itm_kernels.__version__


# -- the extension ---------------------------------------------------------------------------------


def test_build_info() -> None:
    info = backends.build_info()
    if not info:
        assert backends.why_not("ranks", "cpu", "native") is not None
        return
    device = {"cuda", "cuda_architectures", "operators"}
    assert set(info) == {"compiler", "cxx_standard", "torch", "openmp"} | device
    assert info["cxx_standard"] >= 202002
    assert torch.__version__.startswith(info["torch"])
    assert info["openmp"] is True
    assert info["cuda"] is bool(info["operators"]["cuda"]) is bool(info["cuda_architectures"])
    assert set(info["operators"]) == set(backends.DEVICES)
    for operators in info["operators"].values():
        assert set(operators) <= {*backends.OPERATORS, *backends.TOTALS}


# -- imports ---------------------------------------------------------------------------------------

# The parts of the package that each part may import. A part that is not listed is one of "the
# parts around": it may import anything except other parts around, beyond those in AROUND.
SHARED = {"_autocast", "_checks", "_describe", "_options", "_positives", "_public", "_warnings"}
LAYERS: dict[str, set[str]] = {
    "_version": set(),
    "_public": set(),
    "_checks": {"_autocast", "_describe", "_devices", "_public"},
    "_describe": set(),
    "_warnings": set(),
    "_autocast": set(),
    "_options": {"_checks", "_public"},
    "reference": set(),
    "triton": set(),
    "_extension": {"_warnings"},
    "_devices": set(),
    "_availability": {"backends"},
    "_policies": {"backends"},
    "backends": {"_devices", "_extension", "_checks", "_options", "_public", "_availability"},
    "_positives": {"_checks", "_options", "_public"},
    "ops": {"backends", "reference", "_policies", *SHARED},
    "losses": {
        *("ops", "reference", "backends", "mining", "synthesis", "distributed", "_policies"),
        *SHARED,
    },
    "distributed": {"_policies", *SHARED},
    "functional": {"losses"},
}
FOUNDATION = {"ops", "reference", "backends", *SHARED}
AROUND: dict[str, set[str]] = {
    "mining": FOUNDATION,
    "synthesis": FOUNDATION,
    "retrieval": FOUNDATION | {"distributed"},
    "fusion": FOUNDATION,
    "_chunked": {"_checks", "_describe", "_public"},
    "_diagnostics": FOUNDATION | {"losses"},
    "compat": FOUNDATION | {"losses", "functional", "distributed"},
    "__main__": {"backends", "_policies", "__version__"},
}


def part(path: Path) -> str:
    """Return the part of the package that a file belongs to; "" for the root."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def package_imports(path: Path) -> Iterator[str]:
    """Yield the dotted names, within the package, that a file imports anywhere in it."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "itm_kernels":
                yield name.removeprefix("itm_kernels").removeprefix(".")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path: Path) -> None:
    own = part(path)
    allowed = LAYERS | AROUND
    assert not own or own in allowed, f"give {own} a layer in this test"
    for name in package_imports(path):
        target = name.split(".")[0]
        if own and target != own:
            assert target in allowed[own], f"{own} must not import {name}"


@pytest.mark.parametrize("folder", ["reference", "triton"])
def test_kernels_share_only_private_pieces(folder: str) -> None:
    # Other formulas use those of similarity and unit_rows; gluon holds second kernels.
    shared = {"reference._similarity", "reference._unit_rows", "triton.gluon"}
    formulas = {f"reference._{operator}" for operator in backends.OPERATORS}
    for path in (PACKAGE / folder).glob("*.py"):
        if path.name == "__init__.py":
            continue
        for name in package_imports(path):
            module = ".".join(name.split(".")[:2])
            private = name.split(".")[1].startswith("_") and module not in formulas
            assert module in shared or private, f"{path.name}: {name}"


def test_importing_the_package_stays_light() -> None:
    heavy = ("triton", "matplotlib", "tqdm", "torch._dynamo", "torch._inductor")
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import itm_kernels\n"
        f"print(sorted(set({heavy}) & (set(sys.modules) - before)), torch.cuda.is_initialized())"
    )
    result = run(sys.executable, "-W", "error", "-c", script)
    assert result.stdout.strip() == "[] False", result.stdout + result.stderr


def test_importing_the_package_probes_no_device() -> None:
    script = (
        "import torch\n"
        "def probe(*args): raise SystemExit('probed')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = probe\n"
        "import itm_kernels\n"
        "print('clean')"
    )
    result = run(sys.executable, "-c", script)
    assert result.stdout.strip() == "clean", result.stderr


def test_tensors_on_the_cpu_import_no_triton() -> None:
    """Even where it is installed: it takes a second, and a GPU's driver may be missing."""
    script = (
        "import sys\n"
        "from itm_kernels import backends\n"
        "from loss_cases import CASES, batch, gradients\n"
        "backends.HAS_TRITON = True\n"
        "class Refused:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] == 'triton': raise SystemExit(f'{name} is imported')\n"
        "sys.meta_path.insert(0, Refused())\n"
        "for backend in ('auto', 'reference'):\n"
        "    for case in CASES:\n"
        "        rows = batch(8, 5)\n"
        "        gradients(case.loss(*rows, backend), *rows)\n"
        "print(len(CASES), 'triton' in sys.modules)"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    result = run(sys.executable, "-c", script, env={"TRITON_INTERPRET": "0", "PYTHONPATH": path})
    assert result.stdout.strip() == f"{len(CASES)} False", result.stdout + result.stderr


# -- files -----------------------------------------------------------------------------------------

LONG_FILES: dict[str, str] = {}  # path -> why it may exceed 300 lines


def test_files_stay_short() -> None:
    folders = ("itm_kernels", "tests", "examples", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if len(path.read_text().splitlines()) > 300
    }
    assert long == set(LONG_FILES)


# Names that do not say what a file computes or contains, in the singular too, whatever the ending.
VAGUE = re.compile(r"_*(pairs?|rows?|common|rooms?|pulls?|systems?)")


def vaguely_named(root: Path) -> list[str]:
    """Return the source files and folders below a root whose names are in VAGUE."""
    folders = ("csrc", "itm_kernels", "tests", "tools", "examples", "benchmarks", "docs", ".ci")
    paths = [path for folder in folders for path in (root / folder).rglob("*")]
    return sorted(
        path.relative_to(root).as_posix()
        for path in paths
        if VAGUE.fullmatch(path.name.split(".")[0]) and "__pycache__" not in path.parts
    )


def test_file_names_describe_the_content() -> None:
    assert vaguely_named(ROOT) == []


def test_vague_file_names_are_found(tmp_path: Path) -> None:
    names = ("csrc/pairs.cuh", "itm_kernels/_rows.py", "tools/common/unit_rows.py")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert vaguely_named(tmp_path) == [
        "csrc/pairs.cuh",
        "itm_kernels/_rows.py",
        "tools/common",
    ]
