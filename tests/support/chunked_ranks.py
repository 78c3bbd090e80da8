"""Run the checks of `itm_kernels.chunked` on two gloo processes, all in one start.

As a program, `chunked_ranks.py RANK INIT_FILE` prints one JSON object: for each check, "" or the
traceback of its failure.
"""

import json
import os
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import chunk_checks_ddp as chunk_checks_ddp
import chunk_checks_fsdp as chunk_checks_fsdp
from chunk_checks import CHECKS as CHECKS
from processes import ROOT


def main(rank: int, init: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{init}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # ranks that wait for one another report where
    )
    results = {}
    for name, function in CHECKS.items():
        try:
            function()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
            break  # the ranks may no longer agree on what comes next
    print(json.dumps(results))
    dist.destroy_process_group()


def run_all(folder: Path) -> list[dict[str, str]]:
    """Run all checks on two processes; return what each of them reports."""
    command = [sys.executable, __file__]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    init = folder / "init"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ranks = [
        subprocess.Popen([*command, str(rank), str(init)], env=env, **pipes) for rank in range(2)
    ]
    results = []
    for process in ranks:
        try:
            out, err = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        results.append(json.loads(out) if out.startswith(b"{") else {"": err.decode()})
    return results


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
