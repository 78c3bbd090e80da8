"""Build the extension in place with the installed torch: no installation, no network."""

import os
import subprocess
import sys
from typing import Any

import torch

from tools.gpu_check.journal import ROOT, Check, Setting

MINUTES = 8
SHOWN = 3000  # characters from the end of the compiler's output


def build() -> dict[str, Any]:
    """Compile and load the extension."""
    environment = {**os.environ, "ITM_KERNELS_BUILD": "1"}
    if torch.cuda.is_available():
        # Only for this GPU: each further architecture takes as long again.
        major, minor = torch.cuda.get_device_capability()
        environment.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = run(command, environment)
    if done.returncode:
        print(done.stdout[-SHOWN:], flush=True)
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        raise RuntimeError("\n".join(errors[:5] or [done.stdout[-SHOWN:]]))
    # In a new process: this one may have loaded the previous build of the extension.
    question = "from itm_kernels import backends; print(backends.NOT_BUILT)"
    loaded = run([sys.executable, "-c", question])
    if loaded.stdout.strip():
        raise RuntimeError(loaded.stdout.strip())
    return {"warnings": done.stdout.count("warning:")}


def run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60 * MINUTES,
    )


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step."""
    return [Check("build/extension", build, seconds=60 * MINUTES, predicted=120.0)]
