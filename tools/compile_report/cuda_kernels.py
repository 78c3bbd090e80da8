"""Checks the machine code of the CUDA kernels: registers, spills, the l1 inner loop, waits.

No GPU is needed. Without nvcc nothing is checked and a note is printed; `--required` (or
ITM_KERNELS_CUDA=1, as for the build) makes this an error.
"""

import argparse
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, _get_cuda_arch_flags

from tools.compile_report import overlap, recorded, waits

ROOT = Path(__file__).parent.parent.parent
CSRC = ROOT / "csrc"
FOLDER = CSRC / "cuda"
TABLE = Path(__file__).parent / "cuda.tsv"
# The architectures of a wheel; setup.py reads the same file.
SHIPPED = (FOLDER / "architectures.txt").read_text().split()
OLDEST = "7.5"  # compiled only on request; not tuned, so it may spill
# The flags of setup.py, and those that torch adds.
FLAGS = ("-std=c++20", "-O3", *COMMON_NVCC_FLAGS)
INCLUDE = f"-I{CSRC}"
MOST_SHARED = 48 << 10  # the default limit per block
# The large tile of fp32 l1 distances: 64 pairs per thread.
L1_TILE = r"(distance|band)_kernel<.*Tile<float, 128, 128, 16, 16>, .*Magnitude"


class Kernel(NamedTuple):
    """What ptxas reports of one kernel."""

    name: str
    registers: int
    shared: int  # bytes
    local: int  # bytes of stack and spills


def find(tool: str) -> str | None:
    """Return the path of a CUDA tool in CUDA_HOME, on PATH or in a wheel."""
    home = os.environ.get("CUDA_HOME")
    wheels = [path for root in site.getsitepackages() for path in Path(root).glob("nvidia/*/bin")]
    folders = [*([f"{home}/bin"] if home else []), *os.environ["PATH"].split(os.pathsep), *wheels]
    return shutil.which(tool, path=os.pathsep.join(map(str, folders)))


def run(*command: object) -> str:
    """Run a tool; return its output, stderr included, or raise with it."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}")
    return done.stdout


def short(name: str) -> str:
    """Return a kernel's name without namespaces and parameters."""
    name = re.sub(r"itm::cuda::|\(anonymous namespace\)::|^void ", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def report(output: str) -> list[Kernel]:
    """Parse the report of `ptxas -v` on every kernel."""
    names = re.findall(r"Compiling entry function '(\w+)'", output)
    readable = run("c++filt", *names).splitlines() if names else []
    kernels = []
    for name, text in zip(readable, output.split("Compiling entry function")[1:], strict=True):
        registers = re.search(r"Used (\d+) registers", text)
        shared = re.search(r"(\d+) bytes smem", text)
        local = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill)", text)]
        assert registers, text
        kernels.append(
            Kernel(short(name), int(registers[1]), int(shared[1]) if shared else 0, sum(local))
        )
    return kernels


def innermost_loop(code: list[str], instruction: str) -> list[str]:
    """Return the shortest of the loops that hold an instruction most often."""
    labels = {line[:-1]: i for i, line in enumerate(code) if line.endswith(":")}
    loops = []
    for i, line in enumerate(code):
        target = re.search(r"BRA.* `\((\.L_\w+)\)", line)
        if target and labels.get(target[1], i) < i:
            loops.append([text for text in code[labels[target[1]] : i + 1] if text[-1] != ":"])
    most = max((sum(instruction in line for line in loop) for loop in loops), default=0)
    full = [loop for loop in loops if sum(instruction in line for line in loop) == most]
    return min(full, key=len) if most else []


def machine_code(disassembly: str) -> dict[str, list[str]]:
    """Return the instructions and labels of every kernel in the output of `nvdisasm -c`."""
    kernels: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in disassembly.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            lines = kernels.setdefault(section[1], [])
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            lines.append(found[1])
        elif label := re.match(r"(\.L_\w+:)", line):
            lines.append(label[1])
    names = run("c++filt", *kernels).splitlines() if kernels else []
    return dict(zip(map(short, names), kernels.values(), strict=True))


def check_l1(code: list[str]) -> str:
    """Describe the inner loop of an l1 tile; raise unless it has two FADDs per pair."""
    loop = innermost_loop(code, "FADD")
    additions = [line for line in loop if re.match(r"(@\S+ )?FADD", line)]
    # FADD2, on sm_100, adds two pairs of numbers.
    numbers = sum(2 if "FADD2" in line else 1 for line in additions)
    loads = sum("LDS" in line for line in loop)
    magnitudes = sum(2 if "FADD2" in line else 1 for line in additions if "|" in line)
    pairs = 64 * 2  # two columns of D at once
    other = [line for line in loop if re.match(r"(@\S+ )?(FFMA|FMUL|FMNMX|FSEL|FSET)", line)]
    words = f"{numbers} additions, {magnitudes} of magnitudes, {loads} loads in {len(loop)}"
    if numbers != 2 * pairs or magnitudes != pairs or other:
        raise RuntimeError(f"{pairs} pairs of numbers take {words}, and {len(other)} others")
    if any(re.search(r"\b(LDL|STL)\b", line) for line in code):
        raise RuntimeError("local memory is used")
    return f"{pairs} pairs of numbers: {words} instructions"


def check(source: Path, architecture: str, nvcc: str, nvdisasm: str | None) -> list[str]:
    """Compile one file for one architecture; return the lines of its report."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        strict = "" if architecture == OLDEST.replace(".", "") else ",-warn-spills,-Werror"
        # ptxas fails on any spill, and every compiler warning is an error.
        flags = (*FLAGS, "-Werror", "all-warnings", "-cubin", "-Xptxas", f"-v{strict}", code)
        kernels = report(run(nvcc, INCLUDE, *flags, "-o", cubin, source))
        lines = []
        for kernel in sorted(kernels):
            lines.append(
                f"{kernel.registers:>9} {kernel.shared:>9} {kernel.local:>6}  sm_{architecture:<4}"
                f" {kernel.name}"
            )
            if (strict and kernel.local) or kernel.shared > MOST_SHARED:
                raise RuntimeError(f"{source.name}, sm_{architecture}: {kernel}")
        if nvdisasm:
            for name, instructions in machine_code(run(nvdisasm, "-c", cubin)).items():
                overlap.check(name, instructions, int(architecture))
                if strict and re.search(L1_TILE, name):
                    lines.append(f"{'':>26}  sm_{architecture:<4} {check_l1(instructions)}")
                if strict and re.match(waits.REDUCTIONS, name):
                    found = waits.check(name, instructions)
                    lines.append(f"{'':>26}  sm_{architecture:<4} {name}: {found}")
    return lines


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
    rules = [recorded.code_of(Path(str(each.__file__))) for each in (overlap, waits)]
    rules.append(recorded.code_of(Path(__file__)))
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
