"""The first exchange of every call: do all ranks compute the same loss, and of how many rows?

One all-gather of 1,024 bytes per rank carries the numbers of rows and a description of the call. It
is read on the host, since every later message depends on the numbers; on a GPU it waits for the
device once per call.
"""

from collections.abc import Mapping
from hashlib import sha256
from types import TracebackType
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._describe import dtype_name
from itm_kernels._options import Exchange, Gradients
from itm_kernels._public import UnnamedRuntimeError, UnnamedValueError
from itm_kernels.distributed._collectives import scale_gradient
from itm_kernels.distributed._side import Side

MESSAGE_BYTES = 1024
_REMEDY = "pass the same options, dtype and kinds of arguments on all ranks"
_FAILED, _AGREES = b"-", b"+"


class Agreement:
    """A context in which a rank checks its arguments; leaving it exchanges what they are.

    If the checks of a rank fail, it raises its own error, and the others raise RuntimeError with
    its message. If the ranks disagree, all raise the same ValueError. Nobody waits for a rank that
    has given up.

    Args:
        group: a process group that this process belongs to.
        gradients: `"mean"` or `"sum"`.
        exchange: `"auto"`, `"gather"` or `"ring"`.
    """

    def __init__(self, group: Any, gradients: str, exchange: str) -> None:
        _checks.process_group("group", group)
        self.group, self.size = group, dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.gradients, self.exchange = gradients, exchange
        self._rows: dict[str, int] = {}
        self._said = ""
        self._device = _device_of(group)
        self.sides: dict[str, Side] = {}

    def __enter__(self) -> "Agreement":
        return self

    def check_options(self) -> None:
        """Check this rank's `gradients` and `exchange`."""
        _checks.option("gradients", self.gradients, get_args(Gradients))
        _checks.option("exchange", self.exchange, get_args(Exchange))

    def describe(
        self,
        function: str,
        rows: Mapping[str, Tensor],  # [n, D], or [V, n, D]
        optional: Mapping[str, Tensor | None] | None = None,
        **options: object,
    ) -> None:
        """State what this rank was called with; `optional` arguments may be None on all ranks."""
        self.check_options()
        self._rows = {name: tensor.shape[-2] for name, tensor in rows.items()}
        said = [function, f"gradients={self.gradients!r}", f"exchange={self.exchange!r}"]
        for name, tensor in rows.items():
            shape = [*tensor.shape[:-2], "rows", tensor.shape[-1]]
            said.append(f"{name}: {dtype_name(tensor.dtype)} {_shown(shape)}{_grad(tensor)}")
        for name, value in (optional or {}).items():
            said.append(f"{name}: {'given' if value is not None else 'None'}")
        for name, option in options.items():
            is_tensor = isinstance(option, Tensor)
            said.append(f"{name}={f'a tensor{_grad(option)}' if is_tensor else repr(option)}")
        self._said = "; ".join(said)
        self._device = next(iter(rows.values())).device

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # the process is ending
        numbers = ",".join(map(str, self._rows.values()))
        digest = sha256(self._said.encode()).hexdigest()  # of a description of any length
        said = [str(error)] if error else [numbers, digest, self._said]
        message = (_FAILED if error else _AGREES) + "\0".join(said).encode()
        found = self._exchange(message[:MESSAGE_BYTES])
        if error is not None:
            return
        for rank, (head, *parts) in enumerate((m[:1], *m[1:].split(b"\0")) for m in found):
            if head == _FAILED:
                said_there = parts[0].decode(errors="replace")
                raise UnnamedRuntimeError(f"rank {rank} raised: {said_there}")
        calls = [m[1:].split(b"\0") for m in found]
        for rank, (_, theirs, call) in enumerate(calls):
            if theirs != calls[0][1]:
                first, other = (text.decode(errors="replace") for text in (calls[0][2], call))
                raise UnnamedValueError(_difference(first, rank, other))
        counts = [[int(n) for n in rows.split(b",")] for rows, *_ in calls]
        for name, of_ranks in zip(self._rows, zip(*counts, strict=True), strict=True):
            self.sides[name] = Side(self.group, self.rank, of_ranks)
            if not sum(of_ranks):
                raise UnnamedValueError(f"{name} has no rows on any rank; skip empty batches")

    def entering(self, *tensors: Any) -> tuple[Any, ...]:
        """Return tensors with the factor of `gradients`; others are returned as they are."""
        factor = self.size if self.gradients == "mean" else 1
        return tuple(scale_gradient(t, factor) if isinstance(t, Tensor) else t for t in tensors)

    def _exchange(self, message: bytes) -> list[bytes]:
        padded = bytearray(message.ljust(MESSAGE_BYTES, b"\0"))
        own = torch.frombuffer(padded, dtype=torch.uint8).to(self._device)
        side = Side(self.group, self.rank, (1,) * self.size)
        return [bytes(row.tolist()).rstrip(b"\0") for row in side.every(own).cpu()]


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Return a device that the group can communicate on, before an argument names one."""
    if "nccl" in dist.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _grad(value: object) -> str:
    # A rank without a backward pass would leave the others waiting in theirs.
    needed = isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    return " with gradient" if needed else ""


def _shown(shape: list[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _difference(first: str, rank: int, other: str) -> str:
    """Name the first argument that differs between rank 0 and another."""
    mine, theirs = first.split("; "), other.split("; ")
    for a, b in zip(mine, theirs, strict=False):
        if a != b:
            return f"ranks disagree: rank 0 has {a}, rank {rank} has {b}; {_REMEDY}"
    return f"ranks disagree: rank 0 called {first}, rank {rank} {other}; {_REMEDY}"
