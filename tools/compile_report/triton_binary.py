"""What a compiled Triton kernel uses, read from its binary, and what is wrong with that."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
AMD = "gfx942"
# Bytes of shared memory that a block may ask for.
SHARED: dict[int | str, int] = {
    **dict.fromkeys((86, 89, 120), 99 << 10),
    **dict.fromkeys((90, 100), 227 << 10),
    80: 163 << 10,
    AMD: 64 << 10,
}
# Each generation's own: wgmma and tcgen05 have twice the rate of the mma.sync before them.
TENSOR_CORES: dict[int | str, str] = {
    **dict.fromkeys((80, 86, 89, 120), "mma.sync"),
    90: "wgmma.mma_async",
    100: "tcgen05.mma",
    AMD: "v_mfma",
}
# A dot of bf16, fp16 or tf32; one of plain fp32 or fp64 has no tensor-core form everywhere.
HALF_DOT = re.compile(r"tt\.dot .*tensor<\d+x\d+x(?:bf16|f16)>|tt\.dot .*inputPrecision = tf32")


class Use(NamedTuple):
    """What one kernel uses on one architecture."""

    registers: int
    spills: int  # instructions, or bytes on AMD
    shared: int  # bytes
    products: int  # tensor-core instructions
    copies: int  # asynchronous ones
    complaints: tuple[str, ...]


def use_of(kernel: Any, architecture: int | str) -> Use:
    """Return what a kernel uses, with complaints."""
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
        # Pointers tell fp64: a float argument of any kernel is one. Its kernels may spill.
        "spills": spills and "tt.ptr<f64" not in ir,
        "shared memory": shared > SHARED[architecture],
        "no tensor cores": half and not products,
        "loads not pipelined": half and not copies and architecture != AMD,
    }
    complaints = tuple(complaint for complaint, holds in wrong.items() if holds)
    return Use(registers, spills, shared, products, copies, complaints)


def _registers(cubin: bytes) -> tuple[int, int]:
    """Return how many registers a kernel has, and how many instructions spill them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(what: str) -> str:
            command = [str(TOOLS / "cuobjdump"), what, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        use = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump("-res-usage")))
        if not int(use["STACK"]) + int(use["LOCAL"]):
            return int(use["REG"]), 0  # nowhere to spill to; reading the instructions takes .4 s
        # An array on the stack is as slow as a spill: its loads and stores are the same.
        return int(use["REG"]), max(1, len(re.findall(r"\b(?:STL|LDL)\b", dump("-sass"))))
