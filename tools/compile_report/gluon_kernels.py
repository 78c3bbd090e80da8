"""Compile the Gluon kernels for sm_90 and check their machine code.

`python -m tools.compile_report.gluon_kernels` prints registers, stack, shared memory, tensor-core
and TMA instructions of every kernel, and the instructions of its epilogue per score. It fails for a
kernel that uses a stack, exceeds the shared memory, lacks HGMMA or UTMALDG, or whose tensor-core
instructions the assembler serializes. TRITON_INTERPRET must not be set.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton

from itm_kernels.triton import gluon
from itm_kernels.triton._operands import operands
from tools.compile_report.triton_binary import SHARED, TOOLS
from tools.compile_report.triton_jobs import COMPILE, Job, StandIn, planning

ARCHITECTURE = 90
N, D = 4096, 1024
SCORES = 64 * 256 // 128  # per thread
PRODUCTS = 4  # HGMMA instructions of depth 16 in a step of depth 64
NEEDED = ("HGMMA", "UTMALDG")
# Lanes per multiprocessor and clock on sm_90, from the CUDA programming guide.
PIPES = {
    "SHFL": 32,
    **dict.fromkeys(("FADD", "FMUL", "FFMA"), 128),
    **dict.fromkeys(("MUFU",), 16),
}
ALU = 64  # all other arithmetic: comparisons, maxima, selections, integers
NO_ALU = re.compile(r"^(?:U[A-Z]|LD|ST|BAR|BRA|SYNCS|NOP|WARPSYNC|R2UR|S2|CS2R)")


class Use(NamedTuple):
    """Resources and instructions of a kernel."""

    registers: int
    stack: int
    shared: int
    counts: Counter[str]
    waited: int  # tensor-core instructions that the assembler serializes
    epilogue: Counter[str]  # per thread, in a tile without masked scores or NaN


def hardest(dtype: torch.dtype, ids: bool) -> None:
    """Launch the hardest-negatives kernel."""
    from itm_kernels.triton.gluon.hardest import hardest as kernel

    x = torch.empty((N, D), dtype=dtype, device="meta")
    some = torch.empty(N, dtype=torch.int64, device="meta") if ids else None
    kernel(operands(x, x, parts=2), some, some)


def log_sum_exp(dtype: torch.dtype, ids: bool) -> None:
    """Launch the log-sum-exp kernel over the rows and columns of a tile."""
    from itm_kernels.triton import _scaled_operands
    from itm_kernels.triton.gluon.log_sum_exp import tile_log_sums

    x, scale = torch.empty((N, D), dtype=dtype, device="meta"), torch.empty((), device="meta")
    some = torch.empty(N, dtype=torch.int64, device="meta") if ids else None
    tile_log_sums(_scaled_operands.scaled_operands(x, x, cosine=ids), scale, some, some, some)


LAUNCHES: dict[str, Callable[[torch.dtype, bool], None]] = {
    "hardest": hardest,
    "log_sum_exp": log_sum_exp,
}


def jobs() -> Iterator[Job]:
    """Yield the compilation jobs of every launcher."""
    for name, launch in LAUNCHES.items():
        if not gluon.is_available(name):
            continue
        # fp16 compiles like bf16, and ids with several parts like ids with one.
        for precision, ids in (("bf16", False), ("bf16", True), ("fp32", False)):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            with planning(f"{name} {precision}{' ids' * ids}", ARCHITECTURE) as found:
                launch(dtype, ids)
            yield from (job for job in found.values() if job.function.is_gluon())


def use_of(kernel: Any) -> Use:
    """Read registers, stack and instructions from the binary of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run(
                [TOOLS / "cuobjdump", what, file.name], capture_output=True, text=True, check=True
            ).stdout
            for what in ("-res-usage", "-sass")
        )
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    blocks = list(blocks_of(code))
    counts = sum((Counter(block) for block in blocks), Counter[str]())
    stack = int(found["STACK"]) + int(found["LOCAL"])
    # Only the last HGMMA of a step should wait (gsb0), for all of the step.
    waited = counts["HGMMA"] - PRODUCTS * len(re.findall("HGMMA.*gsb0", code))
    epilogue = Counter(epilogue_of(blocks))
    return Use(int(found["REG"]), stack, kernel.metadata.shared, counts, waited, epilogue)


INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)(.*?);", re.M)


def blocks_of(code: str) -> Iterator[list[str]]:
    """Yield the instructions of every basic block."""
    lines = INSTRUCTION.findall(code)
    targets = {
        int(to, 16) for _, name, rest in lines if name == "BRA" for to in re.findall("0x(.+)", rest)
    }
    block: list[str] = []
    for at, name, _ in lines:
        if int(at, 16) in targets and block:
            yield block
            block = []
        block.append(name)
        if name in ("BRA", "EXIT"):
            yield block
            block = []
    yield block


def epilogue_of(blocks: list[list[str]]) -> list[str]:
    """Return the instructions of the first warpgroup after its products, without special cases.

    Masked scores, NaN and a wide spread are handled in blocks of many selections (FSEL), which an
    ordinary tile skips.
    """
    products = [at for at, block in enumerate(blocks) if "HGMMA" in block]
    end = next(at for at, block in enumerate(blocks) if at > products[0] and "STG" in block)
    while "CS2R" not in blocks[end + 1] and "UTMALDG" not in blocks[end + 1]:
        end += 1
    own = blocks[products[0] + 1 : end + 1]
    return [name for block in own if block.count("FSEL") < SCORES // 2 - 4 for name in block]


def clocks(epilogue: Counter[str]) -> tuple[float, float]:
    """Return the clocks of the busiest unit and of instruction issue for a tile's 256 threads."""
    lanes: Counter[int] = Counter()
    for name, count in epilogue.items():
        if name in PIPES:
            lanes[PIPES[name]] += count
        elif not NO_ALU.match(name):
            lanes[ALU] += count
    threads = 256
    busiest = max(count * threads / rate for rate, count in lanes.items())
    return busiest, sum(epilogue.values()) * threads / 128


def main() -> int:
    """Compile every kernel; return 1 if there is any complaint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", action="store_true", help="print epilogue instructions")
    options, wrong = parser.parse_args(), []
    print(f"{'case':24s} regs stack shared HGMMA UTMALDG  instructions per score, clocks per tile")
    for job in jobs():
        start = time.time()
        triton.runtime.driver.set_active(StandIn(ARCHITECTURE))
        use = use_of(COMPILE(*job.arguments))
        line = (
            f"{job.case:24s} {use.registers:4d} {use.stack:5d} {use.shared:6d} "
            f"{use.counts['HGMMA']:5d} {use.counts['UTMALDG']:7d}"
        )
        if "ids" not in job.case:  # ids mask every tile
            busiest, issue = clocks(use.epilogue)
            per_score = sum(use.epilogue.values()) / SCORES
            line += f"  {per_score:.1f}, {busiest:.0f} (issue {issue:.0f})"
        print(f"{line}  {time.time() - start:.0f} s", flush=True)
        if options.counts:
            print(" ".join(f"{name} {count}" for name, count in use.epilogue.most_common()))
        complaints = {
            "has a stack": use.stack or use.counts["LDL"] or use.counts["STL"],
            "tensor-core instructions serialized": use.waited,
            "shared memory": use.shared > SHARED[ARCHITECTURE],
            **{f"no {name}": not use.counts[name] for name in NEEDED},
        }
        wrong += [f"{job.case}: {complaint}" for complaint, holds in complaints.items() if holds]
    print("\n".join(wrong) or "no complaints")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
