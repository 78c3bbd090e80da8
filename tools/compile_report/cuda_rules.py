"""The rules for the machine code of a CUDA kernel: registers, shared memory, spills, loops.

A committed report depends on the code of this module: `cuda_kernels.check_kernels`.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

from tools.compile_report import overlap, waits

CSRC = Path(__file__).parent.parent.parent / "csrc"
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
