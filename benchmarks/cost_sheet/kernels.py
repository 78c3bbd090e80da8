"""Building blocks of the cost models of Triton kernels, as formulas of a launch's arguments.

Models are registered by kernel name; a kernel without a model is an error that names it.
"""

import math
from collections.abc import Callable
from importlib import import_module

import torch

from benchmarks.cost_sheet.counts import Count, Launch, Operand, unique_bytes
from benchmarks.cost_sheet.rates import L2_BYTES, PROCESSORS, RESIDENT, ceiling_of

Model = Callable[[Launch], Count]
MODELS: dict[str, Model] = {}
PRODUCTS_OF_PARTS = {1: 1, 2: 3, 3: 6}
GROUP = 8  # row tiles that `_score_tiles.program_tile` visits together


def model(*kernels: str) -> Callable[[Model], Model]:
    """Register the model of kernels."""

    def register(function: Model) -> Model:
        MODELS.update(dict.fromkeys(kernels, function))
        return function

    return register


def count_of(launch: Launch) -> Count:
    """Return the work of a launch."""
    for models in (
        "score_models",
        "streaming_models",
        "cluster_models",
        "set_models",
    ):  # which register themselves
        import_module(f"benchmarks.cost_sheet.{models}")
    if launch.kernel not in MODELS:
        raise LookupError(
            f"{launch.kernel} has no cost model: add one to benchmarks/cost_sheet/*_models.py"
        )
    return MODELS[launch.kernel](launch)


# -- shared by kernels -----------------------------------------------------------------------------


def kind_of(x: Operand, precision: str) -> str:
    """Return the kind of product of a tile of rows."""
    if x.dtype == torch.float64:
        return "fp64"
    if x.dtype == torch.float32:
        return "tf32" if precision.startswith("tf32") else "fp32"
    return "half"


def rounding(launch: Launch) -> int:
    """Return the instructions that round a weight for the library's tf32 products."""
    return 11 if launch.arguments.get("PRECISION") == "tf32" else 0


def beside(launch: Launch, exponentials: float) -> int:
    """Return the resident programs per processor, limited by its 65,536 registers [E].

    A thread holds its scores, some of them twice for exponentials, and 40 other values.
    """
    threads = 32 * launch.arguments.get("num_warps", 4)
    kept = (2.5 if exponentials else 1.3) * launch.ROWS * launch.COLUMNS / threads
    registers = min(255.0, kept + 40)
    return max(1, min(4, int(65536 / (threads * registers))))


def waves(tiles: float) -> float:
    """Return the fraction of processors that have a tile, over all waves of tiles."""
    return tiles / (math.ceil(tiles / PROCESSORS) * PROCESSORS)


def streamed(
    launch: Launch, N: int, M: int, row: float, column: float, share: float = 1.0
) -> float:
    """Return the HBM bytes of both operands, with tiles in groups of eight row tiles.

    x is read once; y once per group, unless it stays in the L2.
    """
    groups = math.ceil(N / launch.ROWS / GROUP)
    of_y = M * column
    return N * row + (of_y if of_y <= 0.8 * L2_BYTES else max(1.0, groups * share) * of_y)


def scores(
    launch: Launch,
    N: int,
    M: int,
    instructions: float,
    exponentials: float = 0,
    share: float = 1.0,
    differences: float = 0,
) -> Count:
    """Count a kernel that multiplies tiles of x and y and reduces them in registers.

    `share` is the fraction of tiles that are computed; `differences`, the fraction of tiles that
    subtract elements instead of multiplying.
    """
    x, parts = launch.x, launch.arguments.get("PARTS", 1)
    products, D = PRODUCTS_OF_PARTS[parts], x.shape[-1]
    tiles = math.ceil(N / launch.ROWS) * math.ceil(M / launch.COLUMNS) * share
    elements = tiles * launch.ROWS * launch.COLUMNS
    warps = launch.arguments.get("num_warps", 4)
    size, kind = x.dtype.itemsize, kind_of(x, launch.arguments.get("PRECISION", "ieee"))
    others = {name: each for name, each in launch.operands.items() if name not in ("x", "y")}
    others = {name: each for name, each in others.items() if each.storage != x.storage}
    return Count(
        launch.kernel,
        triton=True,
        kind=kind,
        flop=2.0 * elements * D * products * (1 - differences),
        depth=D * products,
        ceiling=waves(tiles) * ceiling_of(kind, launch.ROWS, launch.COLUMNS, warps),
        instructions=elements * (instructions + 2.0 * D * differences),
        exponentials=elements * exponentials,
        exposed=1.0 if differences == 1 else 1 / beside(launch, exponentials),
        hbm=streamed(launch, N, M, D * size * parts, D * size * parts, share)
        + unique_bytes(others),
        l2=tiles * (launch.ROWS + launch.COLUMNS) * D * size * products,
    )


def passes(launch: Launch, instructions: float = 10, exponentials: float = 0) -> Count:
    """Count a kernel that reads and writes its operands once."""
    largest = max((each.elements for each in launch.operands.values()), default=0)
    size = unique_bytes(launch.operands)
    return Count(
        launch.kernel,
        triton=True,
        instructions=instructions * largest,
        exponentials=exponentials * largest,
        hbm=size if size > RESIDENT else 0,
        l2=size,
    )


def gathered(launch: Launch, rows: float, written: float, D: int, dtype: torch.dtype) -> Count:
    """Count a kernel that reads single rows of D elements and writes some."""
    size = (rows + written) * D * dtype.itemsize
    return Count(launch.kernel, triton=True, hbm=size, l2=size, instructions=2.0 * rows * D)
