"""Interleaved timing of one row: all contenders in one process, so that machine drift cancels.

A round runs every contender, forward then backward. A short contender runs several times in a round
and its median counts, because the first run finds the previous contender's data in the caches.
Ratios are taken within a round, and their median is reported. Before the first round, each
contender's values and gradients are compared with the formula in fp64: a benchmark of different
mathematics fails instead of being reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.limits import ISSUED, Work, gpu_times, seconds
from benchmarks.rivals import Builder, Function, UnavailableError
from benchmarks.shapes import Size
from itm_kernels import backends

# Tolerances of values and of gradients, relative to the norm. Values are sums over many pairs. A
# gradient may differ where fp32 cannot distinguish two negatives, or on which side of a bound a
# pair lies; different mathematics differs by 1.
TOLERANCE = {torch.float32: (1e-4, 5e-2), torch.bfloat16: (5e-2, 5e-1)}
SLOW = 3.0  # seconds; a contender that takes longer is measured once, with its memory
SHORT, MOST = 0.02, 9  # a shorter contender runs for so many seconds, at most so many times


def only_output(outputs: Sequence[Tensor]) -> Tensor:
    """Return the single output of a function."""
    return outputs[0]


@dataclass
class Row:
    """An operator or loss, its inputs, and the least work that it needs."""

    operator: str
    size: Size
    tensors: tuple[Tensor, ...]
    work: Work
    case: str = ""
    uses: tuple[str, ...] = ()  # operators of a loss, to record their backends; default: operator
    differentiable: bool = True
    facts: dict[str, Any] = field(default_factory=dict)  # about the data: density, active anchors
    value: Callable[[Sequence[Tensor]], Tensor] = only_output  # the compared value of the outputs
    tolerance: float | None = None  # of the value; None: the common one

    @property
    def key(self) -> str:
        """Return the row's key in the results."""
        return "/".join(part for part in (self.operator, self.case, str(self.size)) if part)


def outputs_of(function: Function, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Call a function and return its outputs as a tuple."""
    result = function(*tensors)
    return tuple(result) if isinstance(result, tuple) else (result,)


class Run:
    """A forward and a backward pass of a contender, timed."""

    def __init__(self, row: Row, function: Function, device: str, double: bool = False) -> None:
        self.row, self.function, self.device = row, function, device
        self.tensors = [
            t.double() if double and t.is_floating_point() else t.clone() for t in row.tensors
        ]
        self.leaves = [t for t in self.tensors if t.is_floating_point()]
        self.outputs: tuple[Tensor, ...] = ()
        self.seed: Tensor | None = None
        # On a GPU, the seconds in which the host issued every forward and backward pass.
        self.issued: tuple[list[float], list[float]] = ([], [])

    def forward(self) -> None:
        """Compute the outputs."""
        self.outputs = outputs_of(self.function, self.tensors)

    def backward(self) -> None:
        """Compute the gradients of the leaves, from a fixed gradient of the first output."""
        self.outputs[0].backward(self.seed)

    def prepare(self) -> None:
        """Discard the outputs and gradients of the last pass."""
        self.outputs = ()
        for leaf in self.leaves:
            leaf.grad = None
            leaf.requires_grad_(self.row.differentiable)

    def __call__(self) -> tuple[float, float]:
        """Return the seconds of forward and backward."""
        self.prepare()
        forward = self.timed(self.forward, self.issued[0])
        if not self.row.differentiable:
            return forward, 0.0
        output = self.outputs[0]
        if self.seed is None and output.dim():
            draw = torch.Generator(output.device).manual_seed(1)
            self.seed = torch.randn(output.shape, generator=draw, device=output.device).to(output)
        return forward, self.timed(self.backward, self.issued[1])

    def timed(self, function: Callable[[], None], issued: list[float]) -> float:
        """Return the seconds of a pass; on a GPU, add those of the host to a list."""
        if self.device != "cuda":
            return seconds(function, self.device)
        # The least so far: the first call compiles, and a call may wait for the GPU.
        found = gpu_times(function, min(issued, default=ISSUED))
        issued.append(found.host)
        return found.gpu

    def found(self) -> list[Tensor]:
        """Return the value and the gradients of the last pass, in fp64."""
        with torch.no_grad():
            value = self.row.value(self.outputs).double()
        grads = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        return [value, *(grad.double() for grad in grads)]


def distance(found: Sequence[Tensor], truth: Sequence[Tensor]) -> tuple[float, float]:
    """Return the relative error of the value, and the largest one of the gradients."""
    norms = [(f - t).norm().item() for f, t in zip(found, truth, strict=True)]
    sizes = [t.norm().item() for t in truth]
    relative = [n / max(size, 1e-30) for n, size in zip(norms, sizes, strict=True)]
    return relative[0], max(relative[1:], default=0.0)


class Contender:
    """A contender of one row: whether it runs, its errors, its peak memory and its times."""

    def __init__(self, name: str, row: Row, builder: Builder, device: str) -> None:
        self.name, self.row, self.device = name, row, device
        self.times: list[tuple[float, float]] = []
        self.record: dict[str, Any] = {"status": "measured"}
        self.run: Run | None = None
        self.estimate = 0.0
        try:
            self.run = Run(row, builder(), device)
            self.run()
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        self.run = None
        if isinstance(error, UnavailableError):
            self.record = {"status": str(error)}
        elif memory.is_out_of_memory(error):
            self.record = {"status": "out of memory"}
        elif self.name == "ours":
            raise error
        else:
            lines = str(error).splitlines() or [""]
            self.record = {"status": f"fails: {type(error).__name__}: {lines[0][:120]}"}

    def compare(self, truth: Sequence[Tensor]) -> None:
        """Compare value and gradients with fp64."""
        if self.run is None:
            return
        value, gradient = distance(self.run.found(), truth)
        most, most_gradient = TOLERANCE[self.row.size.dtype]
        most = self.row.tolerance or most
        assert value <= most, f"{self.row.key}: {self.name} is {value:.2g} away from fp64"
        assert gradient <= most_gradient, f"{self.row.key}: gradient of {self.name}: {gradient:.2g}"
        self.record |= {"error": value, "gradient_error": gradient}

    def weigh(self) -> None:
        """Record the time and peak memory of a second pass, which is the only one of a slow run."""
        if self.run is None:
            return
        run, times = self.run, self.times
        run.prepare()
        peak = memory.peak(lambda: times.append(run()), self.device)
        self.estimate = sum(self.times[-1])
        if self.estimate <= SLOW:
            self.times.clear()
        self.record["peak_memory"] = peak

    def measure(self) -> None:
        """Time one run, or the median of several short runs."""
        if self.run is not None and not (self.estimate > SLOW and self.times):
            runs = []
            for _ in range(max(1, int(SHORT / max(self.estimate, SHORT / MOST)))):
                runs.append(self.run())
                self.run.prepare()
            self.times.append(sorted(runs, key=sum)[len(runs) // 2])


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return {"median": middle.item(), "low": low.item(), "high": high.item()}


def summary(contenders: Sequence[Contender], rates: Sequence[float], row: Row) -> dict[str, Any]:
    """Return the row's record: times, ratios within rounds, and the share of the limit."""
    ours = contenders[0]
    rate = quartiles(rates)
    modes: dict[str, Callable[[tuple[float, float]], float]] = {"forward": lambda t: t[0]}
    if row.differentiable:
        modes |= {"backward": lambda t: t[1], "both": sum}
    for contender in contenders:
        record = contender.record
        if not contender.times:
            continue
        record["rounds"] = len(contender.times)
        issued = [times for times in contender.run.issued if times] if contender.run else []
        if issued:
            record["host"] = sum(quartiles(times)["median"] for times in issued)
        for mode, part in modes.items():
            record[mode] = quartiles([part(times) for times in contender.times])
            work = getattr(row.work, mode)
            record[mode]["rate"] = work / record[mode]["median"]
            record[mode]["percent_of_limit"] = 100 * record[mode]["rate"] / rate["median"]
            # A slow contender has fewer rounds, which are the first rounds of ours.
            pairs = zip(contender.times, ours.times, strict=False)
            record[mode]["ratio"] = quartiles([part(theirs) / part(our) for theirs, our in pairs])
    return {
        "operator": row.operator,
        "case": row.case,
        "N": row.size.N,
        "D": row.size.D,
        "dtype": str(row.size.dtype).removeprefix("torch."),
        "facts": row.facts,
        "backends": {
            name: backends.choose(name, ours.device, (row.size.N, row.size.N))
            for name in row.uses or (row.operator,)
        },
        "limit": {"kind": row.work.kind, **rate, "work": row.work.both},
        "contenders": {contender.name: contender.record for contender in contenders},
    }
