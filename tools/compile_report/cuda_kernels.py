"""Checks the machine code of the CUDA kernels: registers, spills, the l1 inner loop, waits.

No GPU is needed. Without nvcc nothing is checked and a note is printed; `--required` (or
ITM_KERNELS_CUDA=1, as for the build) makes this an error.
"""

import argparse
import os
import re
import shutil
import site
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import _get_cuda_arch_flags

from tools.compile_report import cuda_rules, overlap, recorded, waits
from tools.compile_report.cuda_rules import CSRC, FLAGS, INCLUDE, OLDEST, check, run

FOLDER = CSRC / "cuda"
TABLE = Path(__file__).parent / "cuda.tsv"
# The architectures of a wheel; setup.py reads the same file.
SHIPPED = (FOLDER / "architectures.txt").read_text().split()


def find(tool: str) -> str | None:
    """Return the path of a CUDA tool in CUDA_HOME, on PATH or in a wheel."""
    home = os.environ.get("CUDA_HOME")
    wheels = [path for root in site.getsitepackages() for path in Path(root).glob("nvidia/*/bin")]
    folders = [*([f"{home}/bin"] if home else []), *os.environ["PATH"].split(os.pathsep), *wheels]
    return shutil.which(tool, path=os.pathsep.join(map(str, folders)))


def code_of(path: Path) -> str:
    """Return a file's code without comments, except those on lines that hold a string."""
    lines = (line.strip() for line in path.read_text().splitlines())
    codes = (line if '"' in line else line.split("//")[0].strip() for line in lines)
    return "\n".join(code for code in codes if code and not code.startswith("//"))


def code_behind(source: Path) -> list[str]:
    """Return the code of a file and of all files of csrc that it includes, transitively."""
    codes: dict[Path, str] = {}
    pending = [source]
    while pending:
        path = pending.pop().resolve()
        if path not in codes:
            codes[path] = code_of(path)
            named = re.findall(r'^#include "(.+?)"', codes[path], re.M)
            pending += [folder / name for name in named for folder in (path.parent, CSRC)]
            pending = [path for path in pending if path.exists()]
    return [codes[path] for path in sorted(codes)]


def check_images(nvcc: str, cuobjdump: str, architectures: list[str]) -> str:
    """Compile a file as setup.py does; raise unless it holds every image and the newest's PTX."""
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(architectures) + "+PTX"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "images.o"
        flags = (*FLAGS, *_get_cuda_arch_flags(), "-c")
        run(nvcc, INCLUDE, *flags, "-o", built, FOLDER / "small_batch" / "kmeans_plus_plus.cu")
        images = set(re.findall(r"\.(sm_\w+)\.cubin", run(cuobjdump, "--list-elf", built)))
        ptx = set(re.findall(r"\.(sm_\w+)\.ptx", run(cuobjdump, "--list-ptx", built)))
    names = [f"sm_{a.replace('.', '')}" for a in architectures]
    if images != set(names) or ptx != {names[-1]}:
        raise RuntimeError(f"images of {sorted(images)}, PTX of {sorted(ptx)}, wanted {names}")
    return f"a fat binary holds {', '.join(names)}, and PTX of {names[-1]}"


def check_binding(nvcc: str) -> str:
    """Compile the bindings against torch's headers; a CPU build of torch lacks only one."""
    import torch

    top = re.search(r"^#\$ _?TOP=(.*)$", run(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
    if top is None:
        raise RuntimeError(f"{nvcc} --dryrun names no toolkit")
    headers = Path(torch.__file__).parent / "include"
    with tempfile.TemporaryDirectory() as folder:
        missing = Path(folder) / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
        missing.parent.mkdir(parents=True)
        missing.write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
        unit = Path(folder) / "binding.cpp"
        sources = sorted(FOLDER.rglob("*_binding.cpp"))
        unit.write_text("".join(f'#include "{source}"\n' for source in sources))
        found = [headers, headers / "torch/csrc/api/include", f"{top[1].strip()}/include", folder]
        include = [f"-isystem{path}" for path in found]
        flags = ("-std=c++20", "-fsyntax-only", "-fopenmp", "-Wall", "-Wextra", "-Werror")
        run("g++", *flags, "-Wno-unused-parameter", INCLUDE, *include, unit)
    return f"the bindings compile against torch {torch.__version__}"


def check_kernels(
    cases: list[tuple[Path, str]], nvcc: str, nvdisasm: str | None, update: bool
) -> list[str]:
    """Print the report of every file and architecture; return outdated records."""
    versions = " ".join(
        run(tool, "--version").splitlines()[-1] for tool in (nvcc, nvdisasm) if tool
    )
    heading = f"{versions}: key, registers, shared, local, sm, kernel"
    rules = [recorded.code_of(Path(str(each.__file__))) for each in (cuda_rules, overlap, waits)]
    known = recorded.read(TABLE)

    def reported(case: tuple[Path, str]) -> tuple[str, list[str]]:
        source, architecture = case
        key = recorded.key_of(versions, FLAGS, rules, architecture, code_behind(source))
        if key in known and (update or not recorded.is_sampled(key)):
            return key, known[key]
        lines = check(source, architecture, nvcc, nvdisasm)
        if key in known and sorted(lines) != sorted(known[key]):
            raise RuntimeError(f"{source.name}, sm_{architecture}: recorded as {known[key]}")
        return key, lines

    reports: dict[str, list[str]] = {}
    compiled = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for key, lines in pool.map(reported, cases):
            print("\n".join(lines), flush=True)
            compiled += lines is not known.get(key)
            reports[key] = lines
    print(f"{len(cases)} pairs of a file and an architecture, {compiled} of them compiled")
    if update:
        recorded.write(TABLE, reports, heading)
        return []
    return recorded.outdated(TABLE, heading, known, reports)


def main() -> None:
    """Check every file for every architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--required", action="store_true", help="fail where there is no nvcc")
    parser.add_argument("--update", action="store_true", help="write the recorded table")
    options = parser.parse_args()
    nvcc, nvdisasm, cuobjdump = (find(tool) for tool in ("nvcc", "nvdisasm", "cuobjdump"))
    if nvcc is None:
        print("cuda-check: NOTHING CHECKED: no nvcc in CUDA_HOME or on PATH")
        sys.exit(options.required or os.environ.get("ITM_KERNELS_CUDA") == "1")
    print(run(nvcc, "--version").splitlines()[-1])
    print("registers    shared  local  (bytes)")
    known = run(nvcc, "--list-gpu-arch").split()
    architectures = [a for a in SHIPPED if f"compute_{a.replace('.', '')}" in known]
    print(f"architectures: {', '.join(architectures)} of {', '.join(SHIPPED)}; {OLDEST} may spill")
    cases = [
        (source, a.replace(".", ""))
        for source in sorted(FOLDER.rglob("*.cu"))
        for a in (*architectures, OLDEST)
        if f"compute_{a.replace('.', '')}" in known
    ]
    outdated = check_kernels(cases, nvcc, nvdisasm, options.update)
    print(check_binding(nvcc))
    if cuobjdump:
        print(check_images(nvcc, cuobjdump, architectures))
    if nvdisasm is None or cuobjdump is None:
        print("cuda-check: MACHINE CODE NOT READ: no nvdisasm or cuobjdump (requirements-cuda.txt)")
        sys.exit(options.required)
    if outdated:
        sys.exit(f"cuda-check: {outdated[0]}")


if __name__ == "__main__":
    main()
