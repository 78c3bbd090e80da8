"""Run the compiled loops on other CPUs, in qemu's user mode: `make emulate-cpus`.

There are two checks. On a CPU that lacks an instruction set, its loops are not chosen whatever
ATEN_CPU_CAPABILITY names, and every loss has the same value as on this CPU. The loops alone, which
do not depend on torch, give the same values on another architecture. qemu cannot run AVX-512,
AVX512-BF16 or AMX.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from loss_cases import CASES
from tests.backends.cpu.test_kernels import REPORT

ROOT = Path(__file__).parents[1]
UNITS = [
    *sorted((ROOT / "csrc" / "cpu" / "simd").glob("isa_*.cpp")),
    ROOT / "tools/emulate_cpus.cpp",
]
# CPUs of qemu, with their highest instruction set.
CPUS = {"max": "AVX2", "Nehalem": "DEFAULT"}
PRINTED = "print(_C.instruction_set(), *_C.instruction_sets())\n"
# The extension without the Python of torch, whose import takes most of the time under emulation.
CHOSEN = (
    """
import ctypes
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from sysconfig import get_config_var
torch = Path(find_spec("torch").origin).parent
ctypes.CDLL(str(torch / "lib" / "libtorch_python.so"), mode=ctypes.RTLD_GLOBAL)
path = Path(find_spec("itm_kernels").origin).with_name("_C" + get_config_var("EXT_SUFFIX"))
spec = spec_from_file_location("itm_kernels._C", path)
_C = module_from_spec(spec)
spec.loader.exec_module(_C)
"""
    + PRINTED
)
LOSSES = (
    "from itm_kernels import _C\n" + PRINTED + REPORT.format(names=[case.name for case in CASES])
)
TOLERANCE = 2e-4


def output(*command: str, **environment: str) -> list[str]:
    """Run a program and return the lines of its output; its errors are printed above ours."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **paths, **environment}, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, f"{command[:4]} ended with {done.returncode}"
    return done.stdout.splitlines()


def compare(name: str, lines: list[str], wanted: list[str]) -> None:
    """Compare the numbers of two outputs, line by line."""
    assert len(lines) == len(wanted), f"{name}: {len(lines)} lines, not {len(wanted)}"
    for line, other in zip(lines, wanted, strict=True):
        for a, b in zip(line.split(), other.split(), strict=True):
            try:
                near = math.isclose(float(a), float(b), rel_tol=TOLERANCE, abs_tol=1e-6)
            except ValueError:
                near = a == b
            assert near, f"{name} prints {line!r}, not {other!r}"


def python(emulator: list[str], capability: str, script: str) -> list[str]:
    """Run a script in this interpreter under emulation, with the given ATEN_CPU_CAPABILITY."""
    return output(*emulator, sys.executable, "-c", script, ATEN_CPU_CAPABILITY=capability)


def losses_of_other_cpus() -> None:
    """Run the package on an emulated CPU of this architecture."""
    cpu, highest = next(iter(CPUS.items()))
    emulator = ["qemu-x86_64", "-cpu", cpu]
    # torch itself would execute unsupported instructions: only the choice of loops is checked.
    (line,) = python(emulator, "avx512", CHOSEN)
    chosen, *sets = line.split()
    assert chosen == sets[0] == highest, f"{cpu} chooses {chosen} of {sets}"
    print(f"{cpu}: with ATEN_CPU_CAPABILITY=avx512, the loops of {chosen} are chosen")
    found = python(emulator, highest.lower(), LOSSES)
    compare(cpu, found[1:], python([], highest.lower(), LOSSES)[1:])
    print(f"{cpu}: {len(found) - 1} losses agree with {highest} on this CPU")


def built(compiler: str, folder: str, *options: str) -> str:
    """Compile the loops with the program that prints their results; return its path."""
    program = str(Path(folder) / compiler)
    output(compiler, "-std=c++20", "-O1", *options, f"-I{ROOT / 'csrc'}", "-o", program,
           *map(str, UNITS))  # fmt: skip
    return program


def loops_of_other_cpus() -> None:
    """Run the loops alone, on the emulated CPUs and on another architecture."""
    with tempfile.TemporaryDirectory() as folder:
        here = built("g++", folder)
        reports: dict[str, list[str]] = {}
        for line in output(here):
            name, *numbers = line.split()
            reports.setdefault(name, []).append(" ".join(numbers))
        runs = {cpu: ["qemu-x86_64", "-cpu", cpu, here] for cpu in CPUS}
        if shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64"):
            there = built("aarch64-linux-gnu-g++", folder, "-static")
            runs["aarch64"] = ["qemu-aarch64", there]
        else:
            print("aarch64: left out, needs g++-aarch64-linux-gnu and qemu-user")
        for name, command in {"this CPU": [here], **runs}.items():
            found: dict[str, list[str]] = {}
            for line in output(*command):
                instruction_set, *numbers = line.split()
                found.setdefault(instruction_set, []).append(" ".join(numbers))
            assert next(iter(found)) == CPUS.get(name, next(iter(found))), f"{name} runs {[*found]}"
            for instruction_set, lines in found.items():
                compare(f"{instruction_set} on {name}", lines, reports["DEFAULT"])
            print(f"{name}: {len(reports['DEFAULT'])} results of loops agree, {', '.join(found)}")


def main() -> None:
    """Run all checks that can be emulated here, and print those that are left out."""
    if not shutil.which("qemu-x86_64"):
        print("emulate-cpus: skipped, qemu-x86_64 is not installed; install qemu-user")
        return
    loops_of_other_cpus()
    if os.uname().machine == "x86_64":
        losses_of_other_cpus()


if __name__ == "__main__":
    main()
