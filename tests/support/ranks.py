"""Processes of a gloo group, started once, that run functions of importable modules."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=120)
GROUPS: dict[int, Any] = {}  # in a worker: the group of the first W ranks


def forking() -> Any:
    """Return a context whose processes are forks of one that has imported torch, in 2 s."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "itm_kernels", "loss_cases"])
    return context


def _serve(rank: int, size: int, store: str, connection: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT
    )
    for width in range(1, size + 1):
        GROUPS[width] = dist.new_group(range(width), timeout=TIMEOUT)
    connection.send(None)
    while (task := connection.recv()) is not None:
        function, width, arguments = task
        try:
            connection.send((True, function(GROUPS[width], *arguments)))
        except Exception as error:  # sent to the test
            connection.send((False, f"{type(error).__name__}: {error}"))
    dist.destroy_process_group()


class RanksFailedError(Exception):
    """What ranks raised; `errors` holds the message of every rank, or None."""

    def __init__(self, errors: list[str | None]) -> None:
        super().__init__("; ".join(f"rank {r}: {e}" for r, e in enumerate(errors) if e))
        self.errors = errors


class Ranks:
    """A number of ranks; `run` calls a function on the first of them and returns all results.

    By default each process starts afresh, with the environment of this one.
    """

    def __init__(self, size: int, context: Any = None) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        context = context or mp.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            given = rank, size, os.path.join(self._folder.name, "store"), theirs
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def run(self, function: Callable[..., Any], *arguments: Any, width: int | None = None) -> Any:
        """Call `function(group, *arguments)` on the first `width` ranks.

        Raises:
            RanksFailedError: a rank raised an error.
        """
        pipes = self._pipes[: width or self.size]
        for pipe in pipes:
            pipe.send((function, len(pipes), arguments))
        found = [pipe.recv() for pipe in pipes]
        if not all(good for good, _ in found):
            raise RanksFailedError([None if good else message for good, message in found])
        return [result for _, result in found]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)
        self._folder.cleanup()
