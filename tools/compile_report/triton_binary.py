"""Read the resource use of a compiled Triton kernel from its binary, and check it."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
AMD = "gfx942"
# Maximum bytes of shared memory per block.
SHARED: dict[int | str, int] = {
    **dict.fromkeys((86, 89, 120), 99 << 10),
    **dict.fromkeys((90, 100), 227 << 10),
    80: 163 << 10,
    AMD: 64 << 10,
}
# The instruction of each generation: wgmma and tcgen05 have twice the rate of mma.sync.
TENSOR_CORES: dict[int | str, str] = {
    **dict.fromkeys((80, 86, 89, 120), "mma.sync"),
    90: "wgmma.mma_async",
    100: "tcgen05.mma",
    AMD: "v_mfma",
}
# A dot of bf16, fp16 or tf32. fp32 and fp64 dots have no tensor-core form on some GPUs.
HALF_DOT = re.compile(r"tt\.dot .*tensor<\d+x\d+x(?:bf16|f16)>|tt\.dot .*inputPrecision = tf32")


class Use(NamedTuple):
    """Resource use of one kernel on one architecture."""

    registers: int
    spills: int  # spill instructions, or bytes on AMD
    shared: int  # bytes
    products: int  # tensor-core instructions
    copies: int  # asynchronous copies
    complaints: tuple[str, ...]


def use_of(kernel: Any, architecture: int | str) -> Use:
    """Return the resource use of a kernel, with complaints."""
    if architecture == AMD:
        code, copies = kernel.asm["amdgcn"], 0
        (registers,), (spills,) = (
            {int(count) for count in re.findall(rf"\b{name}: (\d+)", code)}
            for name in ("NumVgprs", "ScratchSize")
        )
    else:
        code = kernel.asm["ptx"]
        copies = len(re.findall(r"cp\.async\.(?:c[ag]|bulk)", code))
        registers, spills = _registers(kernel.asm["cubin"])
    ir, shared = kernel.asm["ttir"], kernel.metadata.shared
    products, half = code.count(TENSOR_CORES[architecture]), HALF_DOT.search(ir)
    wrong = {
        # fp64 kernels may spill. Their pointers identify them: any kernel may have an fp64 scalar.
        "spills": spills and "tt.ptr<f64" not in ir,
        "shared memory": shared > SHARED[architecture],
        "no tensor cores": half and not products,
        "loads not pipelined": half and not copies and architecture != AMD,
    }
    complaints = tuple(complaint for complaint, holds in wrong.items() if holds)
    return Use(registers, spills, shared, products, copies, complaints)


def _registers(cubin: bytes) -> tuple[int, int]:
    """Return the numbers of registers and of spill instructions of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(what: str) -> str:
            command = [str(TOOLS / "cuobjdump"), what, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        use = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump("-res-usage")))
        if not int(use["STACK"]) + int(use["LOCAL"]):
            return int(use["REG"]), 0  # no stack, so no spills; disassembling takes .4 s
        # An array on the stack counts as a spill: its loads and stores are the same and as slow.
        return int(use["REG"]), max(1, len(re.findall(r"\b(?:STL|LDL)\b", dump("-sass"))))
