"""The code that the report of a CUDA kernel depends on."""

from pathlib import Path

import pytest

from tools.compile_report import cuda_kernels
from tools.compile_report.cuda_kernels import FOLDER, code_behind


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cuda_kernels, "CSRC", tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "shared.h").write_text("int shared();\n")
    (tmp_path / "small" / "kernel.cuh").write_text('#include "shared.h"\nint kernel();\n')
    source = tmp_path / "small" / "kernel.cu"
    source.write_text('#include <cstdint>\n#include "kernel.cuh"\nint launch();\n')
    return source


def test_included_files_count(source: Path) -> None:
    codes = code_behind(source)
    assert len(codes) == 3
    (source.parents[1] / "shared.h").write_text("long shared();\n")
    assert code_behind(source) != codes


def test_comments_do_not_count(source: Path) -> None:
    codes = code_behind(source)
    source.write_text("// A launcher.\n" + source.read_text().replace(";", ";  // launches"))
    assert code_behind(source) == codes


def test_two_slashes_behind_a_string_may_be_code(source: Path) -> None:
    codes = []
    for address in ("a//b", "a//c"):
        source.write_text(f'const char* address = "{address}";\n')
        codes.append(code_behind(source))
    assert codes[0] != codes[1]


def test_every_launcher_includes_its_kernels() -> None:
    for path in FOLDER.rglob("*.cu"):
        assert len(code_behind(path)) > 2, path
