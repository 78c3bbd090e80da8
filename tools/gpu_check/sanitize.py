"""Run compute-sanitizer on losses and operators at small sizes.

It runs `python -m tools.gpu_check.sanitize BACKEND NAME ...` without torch's caching allocator, so
that it detects a read past the end of a tensor.
"""

import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import product
from typing import Any

import torch

from itm_kernels.backends import NAMESPACES
from tools.gpu_check.journal import ROOT, Check, Setting, SkippedError

TOOLS = ("memcheck", "racecheck")
SIZES = ((70, 33), (130, 72))  # two tiles, ragged
GROUPS = {
    "hinges": ("max_of_hinges", "semihard", "sum_of_hinges", "hardest_negatives"),
    "contrastive": ("log_sum_exp", "info_nce", "sigmoid"),
    "intra_modal": ("constraint-official-cosine", "constraint-repel-l2", "constraint-paper-l1"),
    "similarity": ("similarity-dot", "similarity-cosine", "similarity-l1", "similarity-l2"),
    "synthesis": ("rbf_synthesis-kam", "rbf_synthesis_logits-attention", "itm"),
}
SECONDS = 240.0  # per run
FOUND = 9  # exit status of the tool if it reports an error
UNABLE = ("Device not supported", "not supported on this")


def sanitized(tool: str, backend: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Run some cases under one tool; fail with the first lines that it prints."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise SkippedError("compute-sanitizer is not installed")
    command = [sys.executable, "-m", "tools.gpu_check.sanitize", backend, *names]
    plain = run_separately(command)  # compiles the kernels outside the tool
    if plain.returncode:
        raise RuntimeError("\n".join(["without the tool:", *plain.stderr.splitlines()[-4:]]))
    done = run_separately([program, "--tool", tool, "--error-exitcode", str(FOUND), *command])
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if "ran all" not in done.stdout and any(word in line for word in UNABLE for line in lines):
        raise SkippedError(next(line for line in lines for word in UNABLE if word in line))
    if done.returncode:
        own = [line for line in lines if line.startswith("=========")]
        raise AssertionError("\n".join((own or lines)[1:6]))
    return {"result": lines[-1] if lines else ""}


def run_separately(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the cases in a separate process."""
    # tests/support holds loss_cases.
    path = os.pathsep.join(filter(None, ("tests/support", os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def run(backend: str, names: list[str]) -> None:
    """Run the cases of these names forward and backward, with ids and without."""
    from tools.gpu_check import values

    every = values.everything()
    for name, (N, D), dtype in product(names, SIZES, (torch.float32, torch.bfloat16)):
        operation, takes_ids = every[name]
        for ids in (False, True)[: 1 + takes_ids]:
            rows, of_ids = values.batch(N, D, dtype, "cuda", ids)
            with values.preferring("cuda", backend):
                values.results(operation, rows, "auto", of_ids)
    torch.cuda.synchronize()
    print(f"ran all of {', '.join(names)}")


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step: one per tool and operation."""
    if setting.device != "cuda":
        return [Check("sanitize/any", skip)]
    return [
        Check(
            f"sanitize/{tool}/{backend}/{group}",
            partial(sanitized, tool, backend, names),
            2 * SECONDS,
            predicted=60.0,
        )
        for tool, backend, (group, names) in product(TOOLS, NAMESPACES, GROUPS.items())
    ]


def skip() -> None:
    """Skip the step, with the reason."""
    raise SkippedError("compute-sanitizer checks CUDA kernels only")


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
