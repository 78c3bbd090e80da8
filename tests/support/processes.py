"""Run commands in processes of their own, in the checkout."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(
    *command: object, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "ITM_KERNELS_BUILD"}
    """Run a command; what chooses the build is left out of its environment unless given."""
    return subprocess.run(
        [str(part) for part in command],
        env={**inherited, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
