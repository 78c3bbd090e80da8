"""Execute the compiled IR of the Triton kernels on the CPU and check every operator and loss.

`make test-triton-semantics` uses `ttsem`, which executes the intermediate code of every launch with
real masks, bf16 products as on a GPU, and NaN in uninitialized memory. It stops at the source
line of an access out of bounds or of a race between two programs. Values are checked by the error
rule against fp64.

Results are appended to records.jsonl; the same command resumes where it stopped.
"""

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

# The package reads this at import, to run kernels on the CPU; Triton itself must compile them.
os.environ["TRITON_INTERPRET"] = "1"
import itm_kernels  # noqa: E402, F401

del os.environ["TRITON_INTERPRET"]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from ttsem import sanitize  # noqa: E402

from tools.gpu_check import values  # noqa: E402
from tools.gpu_check.journal import Check, Setting, SkippedError, Worker  # noqa: E402

# Ragged over two small tiles, and less than one tile; fewer rows for operations that cost more.
SIZES = {"": ((140, 72), (33, 40)), "synthesis": ((70, 40),), "cmr": ((70, 40),)}
PRECISIONS = ("fp32", "bf16", "tf32", "fp16")
ARCHITECTURE = 90


def compared(
    state: sanitize.Session,
    precision: str,
    run: Callable[[], dict[str, Any]],
    counted: Counter[str],
) -> dict[str, Any]:
    """Run one check and return its figures with the number of executed launches."""
    before, unchecked = state.launches, state.races_unchecked
    try:
        with Tf32Products() if precision == "tf32" else nullcontext():
            found = run()
    finally:
        counted["launches"] += state.launches - before
        counted["races unchecked"] += state.races_unchecked - unchecked
    if state.launches == before:
        raise SkippedError("nothing was launched")
    return {**found, "launches": state.launches - before}


class Tf32Products(TorchDispatchMode):
    """Matrix products of torch as a GPU computes them in tf32, with rounded operands."""

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Round the two operands of a product, which are its last two arguments."""
        name = function.overloadpacket.__name__
        if name == "_euclidean_dist":
            return distances_by_tf32(*args)
        if name in self.PRODUCTS:
            first = len(args) - 2
            args = (*args[:first], *(rounded_to_tf32(operand) for operand in args[first:]))
        return function(*args, **(kwargs or {}))


def distances_by_tf32(x: Tensor, y: Tensor) -> Tensor:
    """Return distances as `torch.cdist` does in tf32: its product has the squares as operands."""
    ones = [torch.ones_like(side[..., :1]) for side in (x, y)]
    squares = [side.square().sum(-1, keepdim=True) for side in (x, y)]
    left = torch.cat([-2 * x, squares[0], ones[0]], -1)
    right = torch.cat([y, ones[1], squares[1]], -1)
    return (rounded_to_tf32(left) @ rounded_to_tf32(right).mT).clamp_min(0).sqrt()


def rounded_to_tf32(x: Tensor) -> Tensor:
    """Round finite fp32 values to the ten mantissa bits of tf32, ties to even."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    even = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return even.view(torch.float32)


def sizes_of(name: str) -> Sequence[tuple[int, int]]:
    """Return the sizes (N, D) that an operation runs at."""
    return next((sizes for word, sizes in SIZES.items() if word and word in name), SIZES[""])


def checks(state: sanitize.Session, setting: Setting, counted: Counter[str]) -> list[Check]:
    """Return one check for every operation, precision and size, with and without ids."""
    found = []
    for name, (operation, takes_ids) in values.everything().items():
        for precision in PRECISIONS:
            if name in values.DRAWING and precision != "fp32":
                continue
            for N, D in sizes_of(name):
                for ids in (False, True)[: 1 + takes_ids]:
                    one = partial(
                        values.compare, name, operation, "triton", precision, N, D, setting, ids
                    )
                    key = f"semantics/{name}/{precision}/N={N},D={D}{',ids' * ids}"
                    found.append(
                        Check(key, partial(compared, state, precision, one, counted), math.inf)
                    )
    return found


def main() -> int:
    """Run the checks that have not passed with these sources; return 0 if all have passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/semantics"))
    parser.add_argument("operations", nargs="*", help="run checks whose name contains one of these")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting("cpu", False, options.out.resolve(), math.inf)
    counted: Counter[str] = Counter()
    began = time.time()
    with sanitize.session(ARCHITECTURE, cuda_is_cpu=False) as state:
        chosen = [
            check
            for check in checks(state, setting, counted)
            if not options.operations or any(word in check.key for word in options.operations)
        ]
        Worker("semantics", setting, f"{began:.0f}.0.1").work(chosen, lambda: False)
    latest = setting.journal.latest()
    results = Counter(latest[check.key]["status"] for check in chosen if check.key in latest)
    launches = sum(latest[c.key].get("launches", 0) for c in chosen if c.key in latest)
    versions = f"torch {torch.__version__}, triton {sys.modules['triton'].__version__}"
    print(
        f"{dict(results)}: {launches:,} launches ({counted['launches']:,} of this run, "
        f"{counted['races unchecked']:,} too large for the race check) in "
        f"{time.time() - began:.0f} s, {versions}"
    )
    return 0 if set(results) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
