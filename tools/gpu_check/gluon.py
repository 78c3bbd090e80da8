"""Check and time the Gluon kernels for sm_90, which stay disabled until they pass this step.

Every kernel of `itm_kernels.triton.gluon` is selected at all sizes. The operators and losses that
launch it are checked by the error rule, and the whole operator is timed with the Gluon and with the
Triton kernel. A kernel that passes and is faster belongs in `gluon.PROVEN`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch

from itm_kernels import backends
from tools.gpu_check import values
from tools.gpu_check.journal import Check, Setting, SkippedError

# The operators and losses that launch each kernel.
USERS = {
    "hardest": ("hardest_negatives", "max_of_hinges"),
    "log_sum_exp": ("log_sum_exp", "info_nce"),
}
# Ragged for tiles of 128 x 256 x 64; TMA requires rows of a multiple of 16 bytes.
SIZES = ((300, 328), (1000, 512), (129, 72), (4096, 1024))
PRECISIONS = ("bf16", "fp16", "fp32")
TIMED = (4096, 32768)
WIDTH = 1024


@contextmanager
def selecting(kernel: str) -> Iterator[Counter[str]]:
    """Select one Gluon kernel wherever it can run, and count how often it is selected."""
    from itm_kernels.triton import gluon

    counted: Counter[str] = Counter()

    def selected(name: str, both: Any) -> bool:
        found = name == kernel and gluon.supports(name, both)
        counted[name] += found
        return found

    with patch.object(gluon, "is_selected", selected):
        yield counted


def why_not(device: str) -> str | None:
    """Return why no Gluon kernel can run here, or None if one can."""
    if device != "cuda" or not backends.HAS_TRITON:
        return "Gluon kernels need a GPU and Triton"
    from itm_kernels.triton import gluon

    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor != gluon.ARCHITECTURE:
        return f"Gluon kernels are for sm_{gluon.ARCHITECTURE}, this is sm_{10 * major + minor}"
    return None


def compared(kernel: str, setting: Setting, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a check of values with a Gluon kernel; fail if the kernel is not launched."""
    if reason := why_not(setting.device):
        raise SkippedError(reason)
    with selecting(kernel) as counted:
        found = run()
    if not counted[kernel]:
        raise AssertionError(f"{kernel} was not launched")
    return {**found, "launches": counted[kernel]}


def timed(kernel: str, N: int, setting: Setting) -> dict[str, Any]:
    """Time the forward pass of an operator with the Triton and the Gluon kernel."""
    if reason := why_not(setting.device):
        raise SkippedError(reason)
    from triton.testing import do_bench

    rows, _ = values.batch(N, WIDTH, torch.bfloat16, setting.device, ids=False)
    operation = values.operators()[USERS[kernel][0]]
    run = partial(operation, *rows, "triton")
    with torch.no_grad():
        before = do_bench(run, return_mode="median")
        with selecting(kernel):
            now = do_bench(run, return_mode="median")
    return {"triton_ms": before, "gluon_ms": now, "ratio": before / now}


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: the times of every kernel, then its values."""
    every, found = values.everything(), []
    sizes = SIZES[:1] if setting.tiny else SIZES
    for kernel, N in product(USERS, TIMED[:1] if setting.tiny else TIMED):
        key = f"gluon/{kernel}/time/bf16/N={N},D={WIDTH}"
        found.append(Check(key, partial(timed, kernel, N, setting)))
    for (kernel, users), (N, D), precision in product(USERS.items(), sizes, PRECISIONS):
        for name in users:
            operation, takes_ids = every[name]
            for ids in (False, True)[: 1 + takes_ids]:
                one = partial(
                    values.compare, name, operation, "triton", precision, N, D, setting, ids
                )
                key = f"gluon/{kernel}/{name}/{precision}/N={N},D={D}{',ids' * ids}"
                run = partial(compared, kernel, setting, one)
                found.append(Check(key, run, predicted=values.PREDICTED))
    return found
