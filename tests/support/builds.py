"""setup.py in a folder of its own, with a compiler that records its command lines."""

import sys
from pathlib import Path
from subprocess import CompletedProcess

from processes import ROOT, run, run_forked

# torch reads the environment when it is imported: its compilers, and where CUDA is.
ANEW = "import sys; sys.modules.pop('torch.utils.cpp_extension', None)"


def build(folder: Path, *options: str, before: str = "", **env: str) -> CompletedProcess[str]:
    """Compile into a folder of its own, so that the checkout's extension stays as it is.

    `before` is code that runs before setup.py. With a PYTHONPATH it runs in a new process.
    """
    command = ("build_ext", "--build-lib", folder, "--build-temp", folder, *options)
    if "PYTHONPATH" in env:
        return run(sys.executable, "setup.py", *command, env=env)
    return run_forked(ROOT / "setup.py", *command, env=env, before=f"{ANEW}\n{before}")


# A compiler that records its command lines and writes empty files.
NOTING = """#!/bin/sh
case "$1" in -dump*) echo 12.2.0; exit ;; esac
echo "$@" >> {log}
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then : > "$2"; fi
  shift
done
"""


def noting(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the file of the records, and the environment that chooses that compiler."""
    log, compiler = folder / "log", folder / "g++"  # torch looks at the name
    compiler.write_text(NOTING.format(log=log))
    compiler.chmod(0o755)
    return log, {"CC": str(compiler), "CXX": str(compiler), "ITM_KERNELS_BUILD": "1"}


def asked(log: Path) -> list[list[str]]:
    """Return the command lines of the compiler: compilations, and the link at the end."""
    commands = [line.split() for line in log.read_text().splitlines()]
    return [words for words in commands if "-o" in words]
