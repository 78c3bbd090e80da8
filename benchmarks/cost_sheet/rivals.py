"""Predicted cost of rivals that need CUDA, from the products and launches of their formulas.

Products per step come from their papers and sources; tiles and launches are estimates. None is
traced.
"""

from typing import Any, NamedTuple

from benchmarks.cost_sheet.counts import Count
from benchmarks.cost_sheet.predict import predict
from benchmarks.cost_sheet.rates import H200, ceiling_of

D = 1024


class Rival(NamedTuple):
    """A rival's step, forward and backward."""

    products: int  # in units of N^2 D FLOP
    exponentials: int  # per score
    launches: int
    tile: tuple[int, int]
    source: str


RIVALS = {
    # Separate passes for both directions, and scores recomputed for dq and for dk.
    "inf-cl": Rival(20, 6, 12, (128, 128), "4 products forward, 16 backward"),
    "siglip-kernel": Rival(8, 4, 6, (128, 128), "scores twice, two products of weights"),
    "memeff": Rival(8, 4, 8, (128, 128), "scores twice, two products of weights"),
}


def count_of(name: str, N: int) -> Count:
    """Return the work of a rival's bf16 step as one launch."""
    rival = RIVALS[name]
    rows, columns = rival.tile
    flop = float(rival.products) * N * N * D
    tiles = flop / 2 / (rows * columns * D)
    return Count(
        name,
        triton=True,
        launches=rival.launches,
        flop=flop,
        depth=D,
        ceiling=ceiling_of("half", rows, columns),
        exponentials=float(rival.exponentials) * N * N,
        exposed=0.5,
        hbm=8.0 * N * D * 2,
        l2=tiles * (rows + columns) * D * 2.0,
    )


def table() -> dict[str, dict[str, Any]]:
    """Return the predicted milliseconds of every rival, bf16, forward and backward, on an H200."""
    found: dict[str, dict[str, Any]] = {}
    for name, rival in RIVALS.items():
        times = {
            f"N = {N:,}: ms": 1e3 * predict([count_of(name, N)], H200).seconds
            for N in (4096, 32768)
        }
        products = f"{rival.products} N^2 D"
        found[name] = {
            **times, "FLOP": products, "launches": rival.launches, "counted": rival.source,
        }  # fmt: skip
    return found
