"""Ranks in network namespaces of their own, joined by a bridge: several hosts on one machine.

Host 0 holds the bridge, and a cable (a pair of veth devices) joins every other host to it. A
namespace ends with its process, and its devices end with it.
"""

import ctypes
import os
import subprocess
from functools import cache, partial
from typing import Any

from dying_ranks import serve_steps
from ranks import forking

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of <sched.h>


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, timeout=10)


def _enter_new_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET) is not permitted")
    _ip("link set lo up")


def _build_bridge(pids: list[int]) -> None:
    _ip("link add bridge type bridge")
    _ip("addr add 10.77.0.1/24 dev bridge")
    _ip("link set bridge up")
    for host, pid in enumerate(pids[1:], 1):
        _ip(f"link add cable{host} type veth peer name eth{host}")
        _ip(f"link set cable{host} master bridge up")
        _ip(f"link set eth{host} netns {pid}")


def _try(connection: Any) -> None:
    try:
        _enter_new_namespace()
        _build_bridge([os.getpid()] * 2)
        connection.send(None)
    except (OSError, subprocess.SubprocessError) as error:
        connection.send(f"this machine permits no namespaces with a bridge and veth: {error}")


@cache
def why_not() -> str | None:
    """Return why this machine cannot have such hosts, or None."""
    context = forking()
    ours, theirs = context.Pipe()
    process = context.Process(target=_try, args=(theirs,), daemon=True)
    process.start()
    reason = ours.recv() if ours.poll(30) else "no answer from a process in a new namespace"
    process.kill()
    process.join()
    return reason


def join(pipes: list[Any]) -> None:
    """Connect the hosts, which wait for each other."""
    pids = [pipe.recv() for pipe in pipes]
    pipes[0].send(pids)
    pipes[0].recv()
    for pipe in pipes[1:]:
        pipe.send(None)


def serve(rank: int, size: int, store: str, connection: Any, moment: str) -> None:
    """Take part in two steps; the last host loses its network in the second."""
    _enter_new_namespace()
    connection.send(os.getpid())
    pids = connection.recv()
    device = f"eth{rank}"
    if rank == 0:
        device = "bridge"
        _build_bridge(pids)
        connection.send(None)
    else:
        _ip(f"addr add 10.77.0.{rank + 1}/24 dev {device}")
        _ip(f"link set {device} up")
    os.environ["GLOO_SOCKET_IFNAME"] = device
    cut = partial(_ip, f"link set {device} down")
    serve_steps(rank, size, store, connection, "gather", moment, cut)
