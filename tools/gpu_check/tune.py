"""Measure tiles of the score kernels against those of `_tile_table.TABLE`.

The step prints the time of the best candidate and of the tile in the table, and checks that their
values agree. The table is edited by hand: results must not depend on timing noise, so no kernel is
autotuned.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import inputs
from benchmarks.limits import seconds
from benchmarks.shapes import Size
from itm_kernels import backends
from tools.gpu_check.journal import Check, Setting, SkippedError
from tools.gpu_check.precompile import precompile, tiled

ROWS, WIDTHS = (4096, 16384, 1024), (1024, 512)
ROUNDS = 12
# Tiles as rows, columns, depth, warps, stages.
TILES = {
    "half": (
        (128, 256, 64, 8, 3), (128, 256, 64, 16, 3), (128, 128, 64, 8, 3), (128, 128, 64, 16, 3),
        (128, 64, 64, 8, 3), (128, 256, 64, 8, 4), (128, 256, 64, 16, 4), (256, 128, 64, 8, 3),
        (256, 128, 64, 16, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (64, 256, 64, 4, 4),
        (64, 128, 64, 4, 4), (128, 64, 64, 4, 4), (64, 64, 64, 4, 4), (64, 64, 128, 4, 3),
        (128, 128, 128, 8, 3), (128, 128, 32, 4, 4),
    ),
    "tf32": (
        (128, 128, 32, 8, 3), (128, 256, 32, 8, 3), (128, 256, 32, 16, 3), (128, 128, 32, 16, 3),
        (128, 64, 32, 8, 3), (128, 128, 32, 4, 3), (128, 128, 32, 8, 4), (64, 128, 32, 4, 4),
        (64, 64, 32, 4, 4), (64, 64, 64, 4, 3), (128, 128, 64, 8, 2),
    ),
}  # fmt: skip
TINY = {kind: ((32, 32, 64, 4, 1),) for kind in TILES}
# fp32 that is split into half-precision parts uses the tiles of half precision.
PRECISIONS = {
    "bf16": (torch.bfloat16, "highest", "half"),
    "fp32 parts": (torch.float32, "highest", "half"),
    "tf32": (torch.float32, "high", "tf32"),
}
Launch = Callable[[Tensor, Tensor], Any]


def launches() -> dict[str, Launch]:
    """Return the launchers of score tiles as functions of two matrices."""
    from itm_kernels.triton import (
        hardest_negatives,
        intra_modal,
        log_sum_exp,
        max_of_hinges,
        sigmoid,
        similarity,
        sum_of_hinges,
    )
    from itm_kernels.triton._blocked_products import no_scores

    none = (None, None, None)

    def number(x: Tensor, value: float) -> Tensor:
        return torch.full((), value, device=x.device)

    def ones(x: Tensor) -> Tensor:
        return torch.ones(x.shape[0], device=x.device)

    def softmax(x: Tensor, y: Tensor) -> Any:
        # A log-sum-exp above every score keeps the weights finite.
        sums = 30 * ones(x)
        return log_sum_exp.log_sum_exp_backward(
            *(ones(x),) * 3,
            sums,
            sums,
            0 * sums,
            0 * sums,
            no_scores(x),
            x,
            y,
            number(x, 20.0),
            *none,
            True,
        )

    return {
        "max_of_hinges forward": lambda x, y: max_of_hinges.max_of_hinges_forward(
            x, y, *none, 0.2, False
        ),
        "log_sum_exp forward": lambda x, y: log_sum_exp.log_sum_exp_forward(
            x, y, number(x, 20.0), *none, True, False
        ),
        "log_sum_exp backward": softmax,
        "similarity dot": lambda x, y: similarity.similarity_forward(x, y, "dot"),
        "intra_modal cosine": lambda x, y: intra_modal.intra_modal_forward(
            x, None, "cosine", "official", 0.05, 0.5, False, True
        ),
        "sum_of_hinges forward": lambda x, y: sum_of_hinges.sum_of_hinges_forward(
            x, y, *none, 0.2, False
        ),
        "sum_of_hinges backward": lambda x, y: sum_of_hinges.sum_of_hinges_backward(
            ones(y), no_scores(x), x, y, *none, 0.2
        ),
        "sigmoid forward": lambda x, y: sigmoid.sigmoid_forward(
            x, y, number(x, 20.0), number(x, -10.0), *none, False, True
        ),
        "sigmoid whole": lambda x, y: sigmoid.sigmoid_total_forward(
            x, y, None, 20.0, None, -10.0, *none, 1.0, True, True, False
        ),
        "sigmoid backward": lambda x, y: sigmoid.sigmoid_backward(
            ones(y), no_scores(x), x, y, number(x, 20.0), number(x, -10.0), *none, True
        ),
        "semihard forward": lambda x, y: max_of_hinges.max_of_hinges_forward(
            x, y, *none, 0.2, True
        ),
        "hardest_negatives": lambda x, y: hardest_negatives.hardest_negatives_forward(x, y, *none),
    }  # fmt: skip


def milliseconds(run: Callable[[], Any], device: str, rounds: int) -> float:
    """Return the median time of a call, without compilation."""
    run()
    return 1000 * median(seconds(run, device) for _ in range(rounds))


def differs(found: Any, wanted: Any) -> bool:
    """Return whether the values of two tiles differ by more than rounding."""
    pairs = zip(tensors(found), tensors(wanted), strict=True)
    return not all(
        torch.allclose(a.double(), b.double(), rtol=1e-2, atol=1e-3, equal_nan=True)
        for a, b in pairs
        if a.is_floating_point()
    )


def tensors(result: Any) -> Sequence[Tensor]:
    """Return a launcher's results as a sequence."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def sweep(name: str, precision: str, size: Size, setting: Setting) -> dict[str, Any]:
    """Time every candidate and the tile of the table; return the best and the gain."""
    from itm_kernels.triton import _operands, _tile_table

    _, matmul, kind = PRECISIONS[precision]
    launch, device = launches()[name], setting.device
    rounds = 1 if setting.tiny else ROUNDS
    run = partial(launch, *inputs.paired(size, device))
    chosen: list[Any] = []
    look_up = _operands.tile_of

    def noted(asked: str, *shape: Any) -> Any:
        tile = look_up(asked, *shape)
        if asked == kind:
            chosen.append(tile)
        return tile

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matmul)
    times: dict[str, float | str] = {}
    try:
        with patch.object(_operands, "tile_of", noted):
            wanted = run()
            table = milliseconds(run, device, rounds)
        for numbers in (TINY if setting.tiny else TILES)[kind]:
            tile = _tile_table.Tile(*numbers)
            with tiled(kind, tile):
                times[tile_text(tile)] = candidate(run, wanted, device, rounds)
    finally:
        torch.set_float32_matmul_precision(before)
    reached = {tile: time for tile, time in times.items() if isinstance(time, float)}
    best = min(reached, key=lambda tile: reached[tile], default="")
    result = {"table": [tile_text(tile) for tile in chosen[:1]], "table ms": table}
    if best:
        result |= {"best": best, "best ms": reached[best], "gain": table / reached[best]}
    print(f"{name} {precision} {size}: {result}", flush=True)
    return {**result, "all": times}


def candidate(run: Callable[[], Any], wanted: Any, device: str, rounds: int) -> float | str:
    """Return the time of a tile, or why it has none."""
    try:
        if differs(run(), wanted):
            return "other values"
        return milliseconds(run, device, rounds)
    except Exception as error:  # out of shared memory or registers, or a compiler error
        return f"fails: {type(error).__name__}: {str(error)[:100]}"


def tile_text(tile: Any) -> str:
    """Return a tile as it is written in the table."""
    return f"Tile({', '.join(str(number) for number in tile)})"


def checks(setting: Setting) -> list[Check]:
    """Return the checks of this step, ordered by the expected gain."""
    usable = backends.why_not("similarity", setting.device, "triton")
    if usable is not None:
        return [Check("tune/any", partial(skip, usable))]
    first = Check("tune/precompile", partial(precompile, setting), 600.0, 120.0)
    names = ("max_of_hinges forward", "log_sum_exp backward") if setting.tiny else launches()
    widths, rows = ((40,), (40,)) if setting.tiny else (WIDTHS, ROWS)
    return [
        first,
        *(
            Check(
                f"tune/{name}/{precision}/{size}",
                partial(sweep, name, precision, size, setting),
                300.0,
            )
            for D, N, precision, name in product(widths, rows, PRECISIONS, names)
            for size in (Size(N, D, PRECISIONS[precision][0]),)
        ),
    ]


def skip(reason: str) -> None:
    """Skip the step, with the reason."""
    raise SkippedError(reason)
