"""Operands of score kernels: the precision of rows and their layout in memory."""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from itm_kernels.triton._launch import cdiv, jit, next_power_of_2
from itm_kernels.triton._tile_table import INTERPRETED as INTERPRETED
from itm_kernels.triton._tile_table import SMALL, architecture
from itm_kernels.triton._tile_table import Tile as Tile
from itm_kernels.triton._tile_table import tile_of as tile_of


def contiguous_rows(x: Tensor) -> Tensor:
    """Return x with contiguous rows; the stride between rows is arbitrary."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the precision in which x is computed."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# Elements per program: one row of D = 1024, so that 128 rows occupy 128 processors.
_NUMBERS = 1 << 14 if INTERPRETED else 1024
_MOST_ROWS = 1024 if INTERPRETED else 16  # 32 rows of 32 columns spill on sm_100


def row_blocks(D: int) -> dict[str, Any]:
    """Return rows per program and columns per step of a kernel that streams whole rows."""
    columns = min(next_power_of_2(D), 1024)
    return {"ROWS": min(_NUMBERS // columns, _MOST_ROWS), "COLUMNS": columns, "num_warps": 4}


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a kernel stores a result that is then converted to `dtype`.

    A GPU rounds to bf16 when it stores; the interpreter truncates.
    """
    return torch.float32 if INTERPRETED and dtype == torch.bfloat16 else dtype


class ScoreOperands(NamedTuple):
    """Kernel argument: the operands of `_score_tiles.score_tile`, and the tile.

    Triton specializes the members of a tuple like parameters; a `tl.constexpr` member is a
    compile-time constant.
    """

    x: Tensor  # [PARTS, N, D]
    y: Tensor  # [PARTS, M, D]
    x_stride: int  # between rows
    y_stride: int
    x_part: int  # between parts
    y_part: int
    D: int
    x_factor: Tensor | None  # [N] of scores
    y_factor: Tensor | None  # [M]
    ROWS: tl.constexpr
    COLUMNS: tl.constexpr
    DEPTH: tl.constexpr
    PARTS: tl.constexpr
    PRECISION: tl.constexpr
    ALIGN: tl.constexpr  # divides D and the strides
    EVEN: tl.constexpr  # D is a multiple of DEPTH
    FACTORS: tl.constexpr  # scores are multiplied by factors


@functools.cache
def constants_of(*values: Any) -> tuple[tl.constexpr, ...]:
    """Return values as compile-time constants. Cached: equal objects make kernel look-up cheap."""
    return tuple(tl.constexpr(value) for value in values)


class Operands(NamedTuple):
    """Two matrices of rows, prepared for `_score_tiles.score_tile`."""

    x: Tensor  # [parts, N, D]
    y: Tensor  # [parts, M, D]
    kind: str
    precision: str
    tile: Tile
    # [N] factors of scores (`_scaled_operands`), [0] for none; None: the kernel has no factors.
    x_factor: Tensor | None = None
    y_factor: Tensor | None = None  # [M]

    @property
    def shape(self) -> tuple[int, int]:
        """Return N and M."""
        return self.x.shape[1], self.y.shape[1]

    def arguments(self, tile: Tile | None = None, parts: int = 0) -> dict[str, Any]:
        """Return the operands as a kernel's arguments, with the options of a launch.

        Args:
            tile: replaces the tile of the operands.
            parts: of y, where it differs from x's.
        """
        x, y, tile = self.x, self.y, tile or self.tile
        D, strides = x.shape[2], (x.stride(1), y.stride(1), x.stride(0), y.stride(0))
        align, even = math.gcd(16, D, *strides), D % tile.depth == 0
        has_factors = self.x_factor is not None and self.x_factor.shape[0] > 0
        constants = constants_of(
            *tile[:3], parts or x.shape[0], self.precision, align, even, has_factors
        )
        found = ScoreOperands(x, y, *strides, D, self.x_factor, self.y_factor, *constants)
        return {"operands": found, **tile.launch_options()}


def operands(
    x: Tensor,
    y: Tensor,
    parts: int = 3,
    shape: tuple[int, int] | None = None,
    epilogue: str = "",
) -> Operands:
    """Prepare rows for tensor cores, in the precision of their dtype and of PyTorch's setting.

    fp16 and bf16 rows are used as they are. fp32 follows `torch.get_float32_matmul_precision`:
    "highest" splits every value into bf16 parts. Three parts (six products) carry all bits of fp32
    at twice the speed of fp32 units; two parts (three products, error 6e-7 on unit rows of D =
    1024, 6e-6 at D = 33) suffice for scores that only select a row.

    `shape` overrides the shape of the scores for which a tile is chosen; `epilogue` is how the
    kernel uses the tile (`_tile_table.TableRow`).
    """
    kind = kind_of(x)
    tile, precision = tile_and_precision(kind, x, y, shape, epilogue)
    return Operands(prepare(x, kind, parts), prepare(y, kind, parts), kind, precision, tile)


def tile_and_precision(
    kind: str,
    x: Tensor,
    y: Tensor,
    shape: tuple[int, int] | None = None,
    epilogue: str = "",
) -> tuple[Tile, str]:
    """Return the tile of the scores of x and y, and the input precision of their products."""
    N, M = shape or (x.shape[0], y.shape[0])
    tile = tile_of("half" if kind == "parts" else kind, N, M, x.shape[1], epilogue)
    return tile, "tf32" if kind == "tf32" else "ieee"


def kind_of(x: Tensor) -> str:
    """Return the kind of products of rows: "half", "parts", "tf32", "ieee" or "fp64"."""
    if x.dtype != torch.float32:
        return "fp64" if x.dtype == torch.float64 else "half"
    return "tf32" if torch.get_float32_matmul_precision() != "highest" else _kind_of_fp32(x)


def kind_and_parts(x: Tensor, cancelling: bool) -> tuple[str, int]:
    """Return the kind of products of rows and weights, and the number of parts for "parts".

    `cancelling`: the products are far larger than their sum. tf32 has too few bits for them; two
    parts have 16 bits, at one and a half times the cost of tf32.
    """
    kind = kind_of(x)
    if kind == "tf32" and cancelling:
        return _kind_of_fp32(x), 2
    return kind, 3


def _kind_of_fp32(x: Tensor) -> str:
    # Splitting costs a pass over the rows, which at small D costs more than the products. On SMALL
    # GPUs bf16 has 2 (GeForce) to 4 times the rate of fp32: six products take 1.5 to 3 times the
    # time of fp32's.
    return "ieee" if x.shape[1] < 32 or architecture() in SMALL else "parts"


def prepare(x: Tensor, kind: str, parts: int = 3) -> Tensor:  # [parts, N, D]
    """Return rows `[N, D]` in the layout that score kernels load."""
    if kind == "parts":
        return _split(x, parts)
    if kind == "tf32" and not INTERPRETED:  # the interpreter multiplies tf32 in fp32
        return tf32_rows(x)
    if kind == "half" and INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter multiplies bf16 incorrectly
    return _aligned(contiguous_rows(x))[None]


def _aligned(x: Tensor) -> Tensor:
    """Return x with rows that asynchronous copies can load, which move at least 4 bytes.

    The compiler assumes either that a pointer is a multiple of 16 bytes or nothing: a view that
    starts elsewhere is loaded element by element. The copy is one pass over N x D and is read
    N / 128 times.
    """
    apart = math.gcd(16, x.shape[1], x.stride(0)) * x.element_size()
    if INTERPRETED or (apart >= 4 and _address(x) % 16 == 0):
        return x
    return torch.nn.functional.pad(x, (0, -x.shape[1] % 16))


def _address(x: Tensor) -> int:
    """Return the address of x; on the meta device the storage starts at 0."""
    return int(x.storage_offset()) * x.element_size() if x.is_meta else x.data_ptr()


PADDED = 128 if INTERPRETED else 64  # a multiple of every tile's depth


def _split(
    x: Tensor,  # [N, D] fp32
    parts: int,
) -> Tensor:  # [parts, N, D'] bf16, zeros from D on
    found = _split_rows(x, parts, torch.bfloat16)
    return found.float() if INTERPRETED else found


def tf32_rows(x: Tensor) -> Tensor:  # [N, D] fp32 -> [1, N, D'], zeros from D on
    """Round fp32 rows to the nearest tf32, ties to even; tensor cores would truncate them.

    Truncation is a bias, which accumulates over D: products are smaller by 2^-11 of their value,
    13 times the largest error of rounded unit rows at D = 1024, 3 times at D = 64. The copy is one
    pass over N x D, and its padded rows are loaded without a mask.
    """
    return _split_rows(x, 1, torch.float32)


def _split_rows(x: Tensor, parts: int, dtype: torch.dtype) -> Tensor:
    N, D = x.shape
    width = D + -D % PADDED
    x = contiguous_rows(x)
    found = torch.empty((parts, N, width), dtype=dtype, device=x.device)
    _split_kernel[(cdiv(N, PADDED // 4), width // PADDED)](
        x, found, x.stride(0), N, D, PARTS=parts, WIDTH=width, ROWS=PADDED // 4, BLOCK=PADDED
    )
    return found


@triton.jit
def to_tf32(value):
    """Round fp32 values to the nearest tf32, ties to even; finite values stay finite."""
    bits = value.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    near = tl.minimum((size + 0xFFF + ((size >> 13) & 1)) & -0x2000, 0x7F7FE000)
    # A NaN whose remaining mantissa bits are all zero would become infinity.
    beyond = tl.where(size > 0x7F800000, 0x7FC00000, size)
    near = tl.where(size < 0x7F800000, near, beyond) | (bits & -0x80000000)
    return near.to(tl.float32, bitcast=True)


@jit(do_not_specialize=["N"])
def _split_kernel(
    x,
    parts,  # [PARTS, N, WIDTH] bf16; fp32 to be multiplied as tf32
    stride,
    N,
    D,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    rest = tl.load(x + row * stride + at, mask=(row < N) & (at < D), other=0.0)
    if parts.dtype.element_ty == tl.float32:
        rest = to_tf32(rest)
    for part in tl.static_range(PARTS):
        high = rest.to(parts.dtype.element_ty)
        tl.store(parts + (row + part * N) * WIDTH + at, high, mask=row < N)
        if part + 1 < PARTS:
            rest -= high.to(tl.float32)
