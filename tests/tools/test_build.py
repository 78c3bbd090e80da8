"""The extension that setup.py builds, its flags, and the wheels that it packs."""

import ast
import re
import sys
import sysconfig
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import itm_kernels
from builds import asked, build, noting
from processes import ROOT, run


def test_unknown_build_choice_is_refused(tmp_path: Path) -> None:
    result = build(tmp_path, ITM_KERNELS_BUILD="yes")
    assert result.returncode != 0
    assert "ITM_KERNELS_BUILD is 'yes'; set it to '0', '1' or 'auto'" in result.stderr


def test_build_can_be_left_out(tmp_path: Path) -> None:
    result = build(tmp_path, ITM_KERNELS_BUILD="0", CXX="missing-compiler")
    assert result.returncode == 0, result.stderr
    assert "itm_kernels._C" not in result.stdout + result.stderr


WITHOUT_COMPILER = {"CC": "missing-compiler", "CXX": "missing-compiler"}


@pytest.mark.parametrize("choice", [{}, {"ITM_KERNELS_BUILD": "auto"}], ids=["unset", "auto"])
def test_without_a_compiler_one_warning_gives_the_remedy(
    tmp_path: Path, choice: dict[str, str]
) -> None:
    result = build(tmp_path, **WITHOUT_COMPILER, **choice)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WARNING: itm_kernels._C was not built") == 1
    assert "C++20 compiler" in result.stderr
    assert "pip install --no-build-isolation ." in result.stderr
    assert not list(tmp_path.rglob("*.so"))


def without_torch(folder: Path) -> dict[str, str]:
    """Return an environment that cannot import torch, as build isolation's cannot."""
    (folder / "torch.py").write_text("raise ImportError('no torch in this environment')")
    return {"PYTHONPATH": str(folder)}


def test_without_torch_one_warning_gives_the_remedy(tmp_path: Path) -> None:
    result = build(tmp_path, **without_torch(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WARNING: itm_kernels._C was not built") == 1
    assert "cannot import torch (no torch in this environment)" in result.stderr


def test_a_required_build_fails_loudly(tmp_path: Path) -> None:
    result = build(tmp_path, **WITHOUT_COMPILER, ITM_KERNELS_BUILD="1")
    assert result.returncode != 0
    assert "error: itm_kernels._C was not built" in result.stderr


def test_a_failed_build_leaves_no_earlier_extension(tmp_path: Path) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    earlier = tmp_path / "itm_kernels" / f"_C{suffix}"
    earlier.parent.mkdir()
    earlier.touch()
    result = build(tmp_path, **without_torch(tmp_path))
    assert result.returncode == 0, result.stderr
    assert not earlier.exists()


# -- flags -----------------------------------------------------------------------------------------


def commands(folder: Path, *options: str, **env: str) -> list[list[str]]:
    """Return the command lines that a build passes to its compiler."""
    log, compiler = noting(folder)
    result = build(folder, *options, **compiler, **env)
    assert result.returncode == 0, result.stderr
    return asked(log)


def debugging(words: list[str]) -> str:
    """Return the option that decides on debug information: the last one."""
    return [word for word in words if word[:2] == "-g" and word[2:3] in ("", *"0123")][-1]


def test_installed_extensions_have_no_debug_information(tmp_path: Path) -> None:
    *compiled, linked = commands(tmp_path, CFLAGS="-g -O2")
    assert compiled
    assert {debugging(words) for words in compiled} == {"-g0"}
    assert not any("-include" in words for words in compiled)
    assert all("-DNDEBUG" in words for words in compiled)
    assert ("-Wl,-s" in linked) is (sys.platform == "linux")


@pytest.mark.parametrize("case", ["sanitizer", "debug"])
def test_debug_information_can_be_kept(tmp_path: Path, case: str) -> None:
    if case == "debug":
        *compiled, linked = commands(tmp_path, "--debug", CFLAGS="-g0")
    else:
        *compiled, linked = commands(tmp_path, CFLAGS="-g1 -fsanitize=address")
    assert {debugging(words) for words in compiled} == {"-g1" if case == "sanitizer" else "-g"}
    assert "-Wl,-s" not in linked


def test_the_cpu_backend_is_one_unit(tmp_path: Path) -> None:
    """The loops of each instruction set are units of their own."""
    *compiled, _ = commands(tmp_path, ITM_KERNELS_PRECOMPILED="0")
    units = {Path(word) for words in compiled for word in words if word.endswith(".cpp")}
    (unit,) = tmp_path.rglob("cpu.cpp")
    assert units == {unit, *ROOT.glob("csrc/cpu/simd/*.cpp")}
    included = {ROOT / "csrc" / name for name in re.findall('#include "(.*)"', unit.read_text())}
    assert included == {
        path for part in (".", "aten", "cpu") for path in ROOT.glob(f"csrc/{part}/*.cpp")
    }


def test_headers_can_be_precompiled(tmp_path: Path) -> None:
    """Once, while their dependencies do not change; never unless requested."""
    precompiled = {"ITM_KERNELS_PRECOMPILED": "1"}
    first, *compiled, _ = commands(tmp_path, **precompiled)
    assert "c++-header" in first
    header = first[first.index("c++-header") + 1]
    assert {words[words.index("-include") + 1] for words in compiled} == {header}
    (tmp_path / "log").unlink()
    again = commands(tmp_path, "--force", **precompiled)
    assert not any("c++-header" in words for words in again)
    assert len(list(tmp_path.rglob("*.gch"))) == 1


def reached(path: Path) -> str:
    """Return a file together with our headers that it includes."""
    text = path.read_text()
    inner = re.findall(r'^#include "(.*)"', text, re.M)
    return text + "".join(reached(ROOT / "csrc" / name) for name in inner)


@pytest.mark.parametrize(
    "header, uses",
    [
        ("ATen/core/Tensor.h", r"\bTensor\b"),
        ("ATen/Dispatch.h", r"\bAT_DISPATCH"),
        ("torch/library.h", r"\bTORCH_LIBRARY"),
    ],
)
def test_files_include_the_precompiled_headers_that_they_use(header: str, uses: str) -> None:
    files = [path for folder in ("aten", "cpu") for path in ROOT.glob(f"csrc/{folder}/*.cpp")]
    assert len(files) > 15
    assert f'"{header}"' in (ROOT / "setup.py").read_text()
    for path in files:
        text = reached(path)
        assert not re.search(uses, text) or f"#include <{header}>" in text, path.name


# -- wheels ----------------------------------------------------------------------------------------


def wheel(folder: Path, **env: str) -> Path:
    """Pack a wheel in a folder of its own."""
    config = folder / "config"
    config.write_text(f"[build]\nbuild_base={folder}/build\n[egg_info]\negg_base={folder}\n")
    words = ["-q", "bdist_wheel", "--bdist-dir", folder / "packed", "--dist-dir", folder]
    env["DIST_EXTRA_CONFIG"] = str(config)
    result = run(sys.executable, "setup.py", *words, env=env)
    assert result.returncode == 0, result.stderr
    assert "icense" not in result.stdout + result.stderr  # neither deprecated nor ignored
    (found,) = folder.glob("*.whl")
    return found


def content(path: Path, name: str) -> Message:
    """Return one of the files that describe a wheel."""
    with ZipFile(path) as packed:
        (found,) = [entry for entry in packed.namelist() if entry.endswith(f".dist-info/{name}")]
        return Parser().parsestr(packed.read(found).decode())


PURE = f"itm_kernels-{itm_kernels.__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(tmp_path_factory.mktemp("pure"), ITM_KERNELS_BUILD="0")


def test_a_wheel_without_the_extension_is_for_every_python(pure: Path) -> None:
    assert pure.name == PURE
    assert content(pure, "WHEEL")["Root-Is-Purelib"] == "true"
    with ZipFile(pure) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("itm_kernels/**/*.py")}
    assert names == {*modules, "itm_kernels/py.typed"}


def test_a_wheel_whose_build_failed_is_for_every_python(tmp_path: Path) -> None:
    path = wheel(tmp_path, **without_torch(tmp_path))
    assert path.name == PURE
    assert content(path, "WHEEL")["Root-Is-Purelib"] == "true"
    assert content(path, "WHEEL")["Tag"] == "py3-none-any"


def test_a_wheel_with_the_extension_is_compiled_once(tmp_path: Path) -> None:
    log, compiler = noting(tmp_path)
    path = wheel(tmp_path, **compiler)
    assert path.name != PURE
    assert content(path, "WHEEL")["Root-Is-Purelib"] == "false"
    with ZipFile(path) as packed:
        assert sum(name.endswith(".so") for name in packed.namelist()) == 1
    made = [words[words.index("-o") + 1] for words in asked(log)]
    loops = list(ROOT.glob("csrc/cpu/simd/*.cpp"))
    assert len(made) == len(set(made)) == len(loops) + 2  # the backend and the extension


def test_metadata_describes_the_package(pure: Path) -> None:
    found = content(pure, "METADATA")
    assert (found["License-Expression"] or found["License"]) == "Apache-2.0"
    assert found["License-File"] == "LICENSE"
    assert found["Author"] == "The itm_kernels authors"
    assert found["Keywords"]
    assert "Typing :: Typed" in found.get_all("Classifier", [])
    assert "Programming Language :: Python :: 3 :: Only" in found.get_all("Classifier", [])


def test_a_source_distribution_has_all_kernels(pure: Path) -> None:
    """Also where it was packed without a compiler, or without CUDA."""
    packed = (pure.parent / "itm_kernels.egg-info" / "SOURCES.txt").read_text().splitlines()
    kernels = {path for path in (ROOT / "csrc").rglob("*.*") if path.is_file()}
    assert {path.relative_to(ROOT).as_posix() for path in kernels} <= set(packed)
    assert not [path for path in packed if path.startswith("tests/")]


# -- dependencies ----------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """Return the third-party packages that a module imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"itm_kernels"}


def test_imports_and_requirements_agree(pure: Path) -> None:
    required: dict[str, set[str]] = {}
    for line in content(pure, "METADATA").get_all("Requires-Dist", []):
        name, _, marker = line.partition(";")
        extra = marker.partition("extra ==")[2].strip(" \"'")
        required.setdefault(extra, set()).add(re.split(r"[^\w-]", name)[0])
    package = ROOT / "itm_kernels"
    kernels = package / "triton"
    always = {path for path in package.rglob("*.py") if kernels not in path.parents}
    assert set().union(*map(imported, always)) == required[""] == {"torch"}
    # The triton folder is imported by the first tensor that runs there: the extra of its name.
    found = set().union(*map(imported, kernels.glob("*.py")))
    assert found - required[""] == required["triton"] == {"triton"}
