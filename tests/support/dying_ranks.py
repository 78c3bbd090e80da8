"""Ranks of which one stops in the middle of a step; each process is started for one step only."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from itm_kernels import functional
from itm_kernels.distributed._agreement import Agreement
from loss_cases import batch
from ranks import forking

TIMEOUT = timedelta(seconds=5)  # of the group
PATIENCE = 60  # seconds in which every other rank ends with an error


def die() -> None:
    """Kill this process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep() -> None:
    """Stop for longer than any rank waits."""
    time.sleep(10 * PATIENCE)


STOPS: dict[str, Callable[[], None]] = {"killed": die, "asleep": sleep}
# Where the rank stops in the second step.
MOMENTS = ("before the first exchange", "after the first exchange", "before the backward pass")


def step(rank: int, exchange: str, moment: str | None, stop: Callable[[], None]) -> float:
    """Compute a loss and its gradient; stop at a moment."""
    image, text = batch(4, 8, seed=rank)
    if moment == "before the first exchange":
        stop()
    agreed = Agreement.__exit__

    def stopping(*arguments: Any) -> None:
        agreed(*arguments)
        stop()

    if moment == "after the first exchange":
        Agreement.__exit__ = stopping  # type: ignore[method-assign]
    loss = functional.info_nce_loss(image, text, group=dist.group.WORLD, exchange=exchange)
    if moment == "before the backward pass":
        stop()
    loss.backward()
    assert image.grad is not None
    return loss.item() + image.grad.sum().item()


def serve(
    rank: int, size: int, store: str, connection: Any, exchange: str, moment: str, stop: str
) -> None:
    """Take part in two steps; the last rank stops in the second."""
    serve_steps(rank, size, store, connection, exchange, moment, STOPS[stop])


def serve_steps(
    rank: int,
    size: int,
    store: str,
    connection: Any,
    exchange: str,
    moment: str,
    stop: Callable[[], None],
) -> None:
    """Take a whole step and one in which the last rank stops; send what each ends with."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT
    )
    connection.send(step(rank, exchange, None, stop))
    connection.recv()
    last = rank == size - 1
    try:
        found: Any = step(rank, exchange, moment if last else None, stop)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    connection.send(found)


@contextmanager
def _running(
    size: int, store: Path, serve: Callable[..., None], arguments: Sequence[Any]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Give the pipes and the processes of a group's ranks. No process is left."""
    context = forking()
    pipes, processes = [], []
    try:
        for rank in range(size):
            ours, theirs = context.Pipe()
            given = rank, size, str(store), theirs, *arguments
            process = context.Process(target=serve, args=given, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes, processes
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def outcomes(
    size: int,
    folder: Path,
    serve: Callable[..., None],
    cases: Sequence[Sequence[Any]],
    *,
    prepare: Callable[[list[Any]], None] | None = None,
    listen: int | None = None,
) -> list[tuple[list[Any], int | None]]:
    """Return per case what its first `listen` ranks ended with, and its last rank's exit code.

    A case holds the last arguments of `serve`. Each has a group of its own, and all groups wait for
    their time-outs at the same time. `prepare` is called with the pipes of a group before its first
    step.
    """
    with ExitStack() as stack:
        groups = [
            stack.enter_context(_running(size, folder / f"store{n}", serve, case))
            for n, case in enumerate(cases)
        ]
        for pipes, _ in groups:
            if prepare is not None:
                prepare(pipes)
        for pipes, _ in groups:
            for pipe in pipes:
                value = _received(pipe)
                assert isinstance(value, float), value
        for pipes, _ in groups:
            for pipe in pipes:
                pipe.send(None)
        found = [[_received(pipe) for pipe in pipes[:listen]] for pipes, _ in groups]
        last = [processes[-1] for _, processes in groups]
        end = time.monotonic() + 1
        for process in last:
            process.join(max(0.0, end - time.monotonic()))
        return [(each, process.exitcode) for each, process in zip(found, last, strict=True)]


def _received(pipe: Any) -> Any:
    if not pipe.poll(PATIENCE):
        return "nothing: the rank still waits"
    try:
        return pipe.recv()
    except EOFError:
        return "nothing: the process ended"
