"""setup.py with a CUDA toolkit: architectures, and the CPU kernels if the CUDA build fails."""

from pathlib import Path

import pytest

from builds import asked, build, noting

# An nvcc that supports some architectures and fails, or records its command lines.
NVCC = """#!/bin/sh
case "$1" in
--version) echo "release 13.0, V13.0.88"; exit ;;
--list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\n'; exit ;;
esac
{compile}
"""
# A torch that claims to be built with CUDA.
WITH_CUDA = """import torch
torch.version.cuda = "13.0"
torch.cuda._is_compiled = lambda: True
torch._C._cuda_getDeviceCount = lambda: 0
"""


def with_nvcc(folder: Path, compile: str) -> dict[str, str]:
    """Return the arguments of `build` for a CUDA build of torch with such a toolkit."""
    nvcc = folder / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(compile=compile))
    nvcc.chmod(0o755)
    return {"before": WITH_CUDA, "CUDA_HOME": str(folder / "cuda"), "MAX_JOBS": "2"}


def test_a_failed_cuda_build_keeps_the_cpu_kernels(tmp_path: Path) -> None:
    log, compiler = noting(tmp_path)
    broken = with_nvcc(tmp_path, "echo broken >&2; exit 1")
    result = build(tmp_path, **compiler, **broken)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("WARNING: the CUDA kernels were not built") == 1
    assert "ITM_KERNELS_CUDA=0 leaves them out" in result.stderr
    linked = asked(log)[-1]
    assert any(word.endswith("/cpu.o") for word in linked)  # the unit of the CPU backend
    assert not any("/cuda/" in word for word in linked)
    assert len(list(tmp_path.rglob("_C*.so"))) == 1


def test_an_unknown_architecture_keeps_the_cpu_kernels(tmp_path: Path) -> None:
    _, compiler = noting(tmp_path)
    toolkit = with_nvcc(tmp_path, "exit 1")
    result = build(tmp_path, **compiler, **toolkit, TORCH_CUDA_ARCH_LIST="1.0")
    assert result.returncode == 0, result.stderr
    assert "CUDA kernels were not built: Unknown CUDA arch (1.0)" in result.stderr
    assert len(list(tmp_path.rglob("_C*.so"))) == 1


def test_a_required_cuda_build_fails_loudly(tmp_path: Path) -> None:
    _, compiler = noting(tmp_path)
    broken = with_nvcc(tmp_path, "exit 1")
    result = build(tmp_path, **compiler, **broken, ITM_KERNELS_CUDA="1")
    assert result.returncode != 0
    assert "the CUDA kernels were not built" not in result.stderr
    assert not list(tmp_path.rglob("_C*.so"))


@pytest.mark.parametrize(
    ("asked_for", "images", "told"),
    [
        ({}, {"sm_80", "sm_90", "compute_90"}, "8.0,9.0+PTX"),
        ({"TORCH_CUDA_ARCH_LIST": "7.5;9.0"}, {"sm_75", "sm_90"}, "7.5,9.0"),
    ],
    ids=["default", "list"],
)
def test_cuda_kernels_are_built_for_the_named_architectures(
    tmp_path: Path, asked_for: dict[str, str], images: set[str], told: str
) -> None:
    log, compiler = noting(tmp_path)
    toolkit = with_nvcc(tmp_path, f'exec {compiler["CXX"]} "$@"')
    result = build(tmp_path, **compiler, **toolkit, **asked_for, ITM_KERNELS_LINEINFO="1")
    assert result.returncode == 0, result.stderr
    compiled = [words for words in asked(log) if any(word.endswith(".cu") for word in words)]
    assert compiled
    for words in compiled:
        found = {word.partition(",code=")[2] for word in words if ",code=" in word}
        assert found == images
        assert "-lineinfo" in words
    (unit,) = (words for words in asked(log) if any(w.endswith("/cpu.cpp") for w in words))
    assert f"-DITM_CUDA_ARCHITECTURES={told}" in unit
