"""Scores of words against regions: their predicted time, as a multiple of that of their products.

The products are the library's launches that multiply all rows, forward and backward, with their
traffic: eager PyTorch cannot do without them either.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cost_sheet import rates, trace
from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.predict import predict
from benchmarks.cost_sheet.sheet import FOLDER, PRECISIONS, launches
from benchmarks.tables import table
from itm_kernels import ops

R, L, D = 36, 20, 1024  # regions and words of the SCAN paper's data
# Images and texts -> the most that a step may take, as a multiple of its products. The goal is 1.5.
# At 128 the launches and the checks of counts take a fifth of the time. Cross attention does not
# reach the goal in half precision: its softmax and cosines take the time of the products. At 128 it
# keeps the products of its forward pass, so that a step has three; at 512 a step has four.
LIMITS = {
    "late interaction": {128: 1.75, 512: 1.5},
    "cross attention": {128: 3.0, 512: 2.15},
}
SIZES = (128, 512)
FILE = FOLDER / "words-and-regions.md"
OPERATORS: dict[str, Callable[..., Tensor]] = {
    "late interaction, words": ops.late_interaction,
    "late interaction, regions": partial(ops.late_interaction, direction="i2t"),
    "cross attention, words": ops.cross_attention,
    "cross attention, regions": partial(ops.cross_attention, direction="i2t"),
}


class Times(NamedTuple):
    """Predicted milliseconds of a step on an H200, and its launches and memory."""

    forward: float
    both: float
    products: float
    triton: int
    aten: int
    peak: float  # MB
    term: str
    eager: float
    eager_peak: float

    @property
    def ratio(self) -> float:
        """The time as a multiple of the products'."""
        return self.both / self.products


Rows = dict[tuple[str, int, str], Times]


def of_products(counts: Iterable[Count]) -> float:
    """Return the seconds of the library's products of all rows."""
    found = (count for count in counts if count.name in ("mm", "addmm"))
    return predict(found, rates.H200).seconds


def traced(name: str, N: int, precision: str, backend: str) -> trace.Trace:
    """Return the trace of an operator for images with all regions and texts with counts."""

    def scores(regions: Tensor, words: Tensor, counts: Tensor) -> Tensor:
        return OPERATORS[name](regions, words, None, counts, backend=backend)

    with trace.precision_of(precision) as dtype:
        options: dict[str, Any] = {"dtype": dtype, "device": "meta", "requires_grad": True}
        counts = torch.empty(N, dtype=torch.int64, device="meta")
        rows = (torch.empty(N, size, D, **options) for size in (R, L))
        return trace.traced(scores, (*rows, counts))


def times(name: str, N: int, precision: str) -> Times:
    """Return the predicted times of an operator."""
    ours, eager = (traced(name, N, precision, backend) for backend in ("triton", "reference"))
    both = predict(ours.counts, rates.H200)
    return Times(
        1e3 * predict(ours.forward, rates.H200).seconds,
        1e3 * both.seconds,
        1e3 * of_products(ours.counts),
        launches(ours.counts, True),
        launches(ours.counts, False),
        ours.peak / 1e6,
        both.named(),
        1e3 * predict(eager.counts, rates.H200).seconds,
        eager.peak / 1e6,
    )


def rows() -> Rows:
    """Return the predicted times of every operator at every size and precision."""
    every = ((name, N, precision) for precision in PRECISIONS for name in OPERATORS for N in SIZES)
    return {key: times(*key) for key in every}


def complaints(found: Rows) -> list[str]:
    """Return the rows that take longer than allowed."""
    return [
        f"{name}, N = {N}, {precision}: {row.ratio:.2f} times the products, at most {limit}"
        for (name, N, precision), row in found.items()
        if row.ratio > (limit := LIMITS[name.split(",")[0]][N])
    ]


def markdown(found: Rows) -> str:
    """Return the tables as Markdown."""
    head = ["operator", "N", "products ms", "forward ms", "ms", "ms / products", "launches"]
    head += ["peak MB", "largest term", "eager ms", "eager's MB"]
    parts = [HEAD]
    for precision in PRECISIONS:
        lines = [
            [
                *(name, str(N), f"{row.products:.3g}", f"{row.forward:.3g}", f"{row.both:.3g}"),
                *(f"{row.ratio:.2f}", f"{row.triton} + {row.aten}", f"{row.peak:,.0f}", row.term),
                *(f"{row.eager:.3g}", f"{row.eager_peak:,.0f}"),
            ]
            for (name, N, own), row in found.items()
            if own == precision
        ]
        parts.append(f"## {precision}\n\n{table(head, lines)}")
    return "\n".join(parts)


HEAD = f"""\
# Predicted, not measured: words against regions on an H200

`make cost-sheet UPDATE=1` writes this file. N images of {R} regions and N texts of {L} words at
most, D = {D}; forward and backward. Launches are counted by running the launchers on meta tensors,
Triton's + ATen's; times are counts divided by the rates of the cost sheet. "Products" are the
library's launches that multiply all rows, with their traffic; the goal is 1.5 times their time.
"words": every word looks at the regions; "regions": the reverse. Texts have counts: six of ATen's
launches, 18 us, check them and mark the scores of those out of range. Eager is the package's
reference. Peak memory excludes the inputs and includes their gradients.
"""
