"""The layers of csrc, which its #include lines follow: the import law of the C++ sources."""

import re
import shutil
from pathlib import Path

import pytest

from processes import ROOT

CSRC = ROOT / "csrc"

LAYERS = {  # layer -> the layers whose headers it may include
    "module": {"cpu", "cpu/simd"},
    "aten": {"aten"},
    "cpu": {"aten", "cpu", "cpu/simd"},
    "cpu/simd": {"cpu/simd"},
    "cuda/binding": {"aten", "cuda", "cuda/binding"},
    "cuda": {"cuda"},
}
WITHOUT_TORCH = {"cpu/simd", "cuda"}
TORCH = re.compile(r"(ATen|c10|torch|pybind11)/")
ELSEWHERE = {"emulator.h"}  # tests/support/emulator, for kernels that are compiled for the host


def layer(name: str) -> str:
    """Return the layer of a file, by its path in csrc."""
    folder, _, file = name.rpartition("/")
    if folder.startswith("cuda") and (file == "device.h" or "_binding." in file):
        return "cuda/binding"
    return folder.split("/")[0] if folder.startswith("cuda") else folder or "module"


def violations(csrc: Path) -> list[str]:
    """Return the includes that leave their layer."""
    found = []
    for path in sorted(csrc.rglob("*.*")):
        name = path.relative_to(csrc).as_posix()
        own = layer(name)
        lines = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M)
        for kind, header in lines:
            if TORCH.match(header):
                allowed = own not in WITHOUT_TORCH
            elif kind == "<" or header in ELSEWHERE:
                allowed = True
            else:
                allowed = (csrc / header).is_file() and layer(header) in LAYERS[own]
            if not allowed:
                found.append(f"{name} must not include {header}")
    return found


def test_includes_follow_the_layers() -> None:
    layers = {layer(path.relative_to(CSRC).as_posix()) for path in CSRC.rglob("*.*")}
    assert layers == set(LAYERS)
    assert violations(CSRC) == []


@pytest.mark.parametrize(
    "into, header",
    [
        ("aten/wide.h", '"cpu/parallel.h"'),
        ("aten/unit_rows.h", '"cuda/launch.h"'),
        ("cpu/sigmoid.cpp", '"cuda/launch.h"'),
        ("cpu/same_id.h", '"cuda/device.h"'),
        ("cpu/simd/loop_table.h", '"cpu/parallel.h"'),
        ("cpu/simd/loop_table.h", '"aten/wide.h"'),
        ("cpu/simd/philox.h", "<ATen/core/Tensor.h>"),
        ("cuda/device.h", '"cpu/simd/loop_table.h"'),
        ("cuda/device.h", '"cpu/score_tiles.h"'),
        ("cuda/compat.cuh", '"aten/wide.h"'),
        ("cuda/compat.cuh", '"cuda/device.h"'),
        ("cuda/compat.cuh", "<c10/util/Half.h>"),
        ("cuda/launch.h", "<torch/library.h>"),
        ("module.cpp", '"cuda/launch.h"'),
        ("cpu/sigmoid.cpp", '"cpu/missing.h"'),
    ],
)
def test_an_include_of_another_layer_is_found(tmp_path: Path, into: str, header: str) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    with (csrc / into).open("a") as file:
        file.write(f"#include {header}\n")
    assert violations(csrc) == [f"{into} must not include {header[1:-1]}"]
