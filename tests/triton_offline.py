"""Every Triton kernel, compiled as its launcher would launch it, for GPUs that are not here.

`python tests/triton_offline.py [operator ...]` runs the real launchers on meta tensors. A stand-in
driver names the architecture, and every launch stops after compilation. What a kernel uses is then
read from its binary: registers, spills, shared memory, tensor-core instructions, asynchronous
copies. TRITON_INTERPRET must not be set.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # 3.10 turns the default
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes of shared memory that a block may ask for.
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
AMD = "gfx942"


class StandIn:
    """A driver without a device."""

    def __init__(self, architecture: int | str) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        amd = isinstance(self.architecture, str)
        return GPUTarget("hip" if amd else "cuda", self.architecture, 64 if amd else 32)

    def get_current_device(self) -> int | str:
        return self.architecture  # each has a cache of kernels of its own

    def get_current_stream(self, device: object) -> int:
        return 0


@contextlib.contextmanager
def compiling(architecture: int | str) -> Iterator[list[tuple[str, Any]]]:
    """Collect the (name, binary) of every kernel that is launched; launch none."""
    found: list[tuple[str, Any]] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel))
        return kernel

    triton.runtime.driver.set_active(StandIn(architecture))
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        JITFunction.run = launch


class Line(NamedTuple):
    """What one kernel uses on one architecture."""

    case: str
    kernel: str
    architecture: int | str
    registers: int
    spills: int
    shared: int
    products: int  # tensor-core instructions
    copies: int  # asynchronous ones
    complaints: tuple[str, ...]


def inspect(case: str, name: str, kernel: Any, architecture: int) -> Line:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dump(what: str) -> str:
            command = [TOOLS / "cuobjdump", what, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        use = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump("-res-usage")))
        spills = len(re.findall(r"\b(?:STL|LDL)\b", dump("-sass")))
    ptx, ir = kernel.asm["ptx"], kernel.asm["ttir"]
    products = ptx.count(TENSOR_CORES[architecture])
    copies = len(re.findall(r"cp\.async\.(?:c[ag]|bulk)", ptx))
    # A dot of bf16, fp16 or tf32; one of plain fp32 or fp64 has no tensor-core form everywhere.
    half = re.search(r"tt\.dot .*tensor<\d+x\d+x(?:bf16|f16)>|tt\.dot .*inputPrecision = tf32", ir)
    double = "tt.ptr<f64" in ir  # pointers: a float argument of any kernel is fp64
    complaints = [
        complaint
        for complaint, holds in {
            "spills": not double and (spills or int(use["STACK"]) + int(use["LOCAL"])),
            "shared memory": kernel.metadata.shared > SHARED[architecture],
            "no tensor cores": half and not products,
            "loads not pipelined": half and not copies,
        }.items()
        if holds
    ]
    return Line(
        case, name, architecture, int(use["REG"]), spills,
        kernel.metadata.shared, products, copies, tuple(complaints),
    )  # fmt: skip


def inspect_amd(name: str, kernel: Any) -> str:
    """Return what is wrong with a kernel for AMD, or nothing."""
    code = kernel.asm["amdgcn"]
    wrong = [] if re.findall(r"ScratchSize: (\d+)", code) == ["0"] else ["spills"]
    wrong += ["shared memory"] if kernel.metadata.shared > 64 << 10 else []
    wrong += ["no matrix cores"] if "tt.dot " in kernel.asm["ttir"] and "v_mfma" not in code else []
    return f"{name}: {', '.join(wrong)}" if wrong else ""


def rows(N: int, D: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((N, D), dtype=dtype, device="meta")


def inputs(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rows(N, D, dtype), rows(N, D, dtype)


def ids(N: int) -> Tensor:
    return torch.empty(N, dtype=torch.int64, device="meta")


def values(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def all_pairs(N: int) -> tuple[tuple[Tensor | None, ...], ...]:
    """Return positive, image_ids and text_ids: without, and with."""
    return (None, None, None), (ids(N), ids(N), ids(N))


def max_of_hinges(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import max_of_hinges as kernels

    image, text = inputs(N, D, dtype)
    for pairs in all_pairs(N):
        for semihard in (False, True):
            kernels.max_of_hinges_forward(image, text, *pairs, 0.2, semihard)
    kernels.max_of_hinges_backward(values(N), image, text, None, ids(N), ids(N))


def hardest_negatives(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import hardest_negatives as kernels

    kernels.hardest_negatives_forward(*inputs(N, D, dtype), None, None, None)


def log_sum_exp(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import log_sum_exp as kernels

    x, y, sums, scale = *inputs(N, D, dtype), values(N), values()
    for pair in ((None, None), (ids(N), ids(N))):
        kernels.log_sum_exp_forward(x, y, scale, *pair)
        kernels.log_sum_exp_backward(sums, sums, sums, sums, x, y, scale, *pair)


def sigmoid(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sigmoid as kernels

    image, text = inputs(N, D, dtype)
    for pairs in all_pairs(N):
        arguments = image, text, values(), values(), *pairs
        kernels.sigmoid_forward(*arguments)
        kernels.sigmoid_backward(values(N), *arguments)


def sum_of_hinges(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sum_of_hinges as kernels

    for pairs in all_pairs(N):
        arguments = *inputs(N, D, dtype), *pairs, 0.2
        kernels.sum_of_hinges_forward(*arguments)
        kernels.sum_of_hinges_backward(values(N), *arguments)


def similarity(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import similarity as kernels

    x, y = inputs(N, D, dtype)
    grad = torch.empty((N, N), dtype=dtype, device="meta")
    for metric in ("dot", "cosine", "l1", "l2", "sqeuclidean"):
        kernels.similarity_forward(x, y, metric)
        kernels.similarity_backward(grad, x, y, metric)


def intra_modal(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import intra_modal as kernels

    x = rows(N, D, dtype)
    for metric in ("cosine", "l1", "l2"):
        for own, mode in ((None, "official"), (ids(N), "repel")):
            keep = mode == "repel" or metric == "cosine"
            found = kernels.intra_modal_forward(x, own, metric, mode, 0.1, 0.9, True, keep)
            kernels.intra_modal_backward(values(N), x, own, *found, metric, mode)


def rbf_synthesis(N: int, D: int, dtype: torch.dtype, logits: bool = False) -> None:
    from itm_kernels.triton import rbf_synthesis as kernels

    K, anchors = 4, rows(N, D, dtype)
    # The associative memory is a matrix [M, M]: with all members it would hide an [N, M].
    for weights, M in (("attention", N), ("kam", min(N, 200))):
        # One clustering, and one per anchor, unless its assignment is what would be measured.
        for assignment in (ids(M), ids(M).expand(N, M))[: 1 if N > 4096 else 2]:
            known = (ids(N), ids(M)) if weights == "kam" else (None, None)
            inputs = anchors, rows(M, D, dtype), assignment, *known, K, 0.5, weights, 1e-4
            if logits:
                kernels.rbf_synthesis_logits_forward(*inputs, False)
                kernels.rbf_synthesis_logits_backward(values(N, K), *inputs, False)
            else:
                kernels.rbf_synthesis_forward(*inputs)
                kernels.rbf_synthesis_backward(values(N, K, D), *inputs)


def rbf_synthesis_logits(N: int, D: int, dtype: torch.dtype) -> None:
    rbf_synthesis(N, D, dtype, logits=True)


def kmeans(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import kmeans as kernels

    x, centroids = rows(N, D, dtype), values(1, 100, D)
    kernels.kmeans(x, None, centroids, 1)
    member = torch.empty((3, N), dtype=torch.bool, device="meta")
    kernels.kmeans(x, member, values(3, 5, D), 1)


LAUNCHES: dict[str, Callable[[int, int, torch.dtype], None]] = {
    "max_of_hinges": max_of_hinges,
    "hardest_negatives": hardest_negatives,
    "log_sum_exp": log_sum_exp,
    "sigmoid": sigmoid,
    "sum_of_hinges": sum_of_hinges,
    "similarity": similarity,
    "intra_modal": intra_modal,
    "rbf_synthesis": rbf_synthesis,
    "rbf_synthesis_logits": rbf_synthesis_logits,
    "kmeans": kmeans,
}
# 256 and 4096 rows take the small and the large tiles. D = 500 is aligned to 8 bytes in bf16, 333
# to none: neither may lose its pipeline.
CASES = (
    *(("bf16", N, D) for N, D in ((256, 1024), (4096, 1024), (4096, 500), (4096, 333))),
    ("fp16", 4096, 1024),
    *(("tf32", N, D) for N, D in ((256, 1024), (4096, 333))),
    *(("fp32", N, D) for N, D in ((256, 1024), (4096, 1024))),
    # Arguments equal to 1 are constants: other code. fp64 compiles; it may spill.
    *((precision, 1, 1) for precision in ("bf16", "fp32", "fp64")),
    ("fp64", 33, 333),
)
# What CI has time for.
FEW = (("bf16", 4096, 500), ("bf16", 256, 333), ("fp32", 4096, 1024), ("fp64", 1, 1))
PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "fp64": (torch.float64, "highest"),
}


def compiled(
    operator: str, architecture: int, cases: Iterable[tuple[str, int, int]]
) -> Iterator[Line]:
    """Yield a line for every distinct kernel that an operator launches."""
    before, seen = torch.get_float32_matmul_precision(), set()
    for precision, N, D in cases:
        dtype, setting = PRECISIONS[precision]
        torch.set_float32_matmul_precision(setting)
        try:
            with compiling(architecture) as found:
                LAUNCHES[operator](N, D, dtype)
        finally:
            torch.set_float32_matmul_precision(before)
        for of, kernel in found:
            if kernel.hash in seen:
                continue
            seen.add(kernel.hash)
            yield inspect(f"{operator} {precision} {N} x {D}", of, kernel, architecture)


def compiled_for_amd() -> list[str]:
    """Compile max of hinges for AMD, and return complaints: Triton's promise of one source."""
    with compiling(AMD) as found:
        max_of_hinges(4096, 1024, torch.bfloat16)
    assert found
    return [wrong for name, kernel in found if (wrong := inspect_amd(name, kernel))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", default=list(LAUNCHES))
    parser.add_argument("--architectures", nargs="*", type=int, default=list(SHARED))
    parser.add_argument("--few", action="store_true", help="only the cases that CI has time for")
    options = parser.parse_args()
    bad = 0
    print(f"{'case':34s}{'kernel':22s}  sm regs spill  shared  mma  cp")
    for operator in options.operators:
        for architecture in options.architectures:
            for line in compiled(operator, architecture, FEW if options.few else CASES):
                bad += bool(line.complaints)
                print(
                    f"{line.case:34s}{line.kernel:22s}{line.architecture:4d} {line.registers:4d} "
                    f"{line.spills:5d} {line.shared:7d} {line.products:4d} {line.copies:3d}  "
                    f"{', '.join(line.complaints)}",
                    flush=True,
                )
    for complaint in compiled_for_amd():
        bad += 1
        print(f"{AMD} {complaint}")
    print(f"{bad} kernels with complaints")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
