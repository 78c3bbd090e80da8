"""The table of tiles: every line fits; architecture and epilogue decide which one applies."""

from collections.abc import Callable

import pytest
import torch

from interpreted import needs_interpreter

pytestmark = needs_interpreter
Name = int | str
# KB of shared memory, as in `triton_binary`, which needs a compiler.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, 121: 99}
BYTES = {"half": 2, "tf32": 4, "ieee": 4, "fp64": 8}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Name], None]:
    from itm_kernels.triton import _operands, _tile_table

    def stand_in(architecture: Name) -> None:
        for module in (_operands, _tile_table):
            monkeypatch.setattr(module, "architecture", lambda: architecture)

    return stand_in


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("epilogue", ["", "reduction", "weights", "narrow"])
@pytest.mark.parametrize("kind", BYTES)
def test_every_tile_fits_the_shared_memory(
    kind: str, epilogue: str, architecture: int, on: Callable[[Name], None]
) -> None:
    from itm_kernels.triton._tile_table import tile_of

    on(architecture)
    for N in (1, 1 << 10, 1 << 11, 1 << 15):
        tile = tile_of(kind, N, 2 * N, 1024, epilogue)
        # mma.sync reads a chunk to registers before the next is loaded: one stage fewer.
        stages = tile.stages - (architecture not in (90, 100))
        chunk = (tile.rows + tile.columns) * tile.depth * BYTES[kind]
        assert stages * chunk <= SHARED[architecture] << 10


def test_an_epilogue_that_keeps_more_takes_fewer_columns(on: Callable[[Name], None]) -> None:
    from itm_kernels.triton._tile_table import tile_of

    for architecture in SHARED:
        on(architecture)
        for kind in ("half", "tf32"):
            most, weights, narrow = (
                tile_of(kind, 1 << 12, 1 << 12, 1024, epilogue)
                for epilogue in ("reduction", "weights", "narrow")
            )
            assert most.columns >= weights.columns >= narrow.columns == 64
            assert most.columns == (256 if (architecture, kind) == (90, "half") else 128)


def test_fp32_is_split_where_tensor_cores_are_six_times_as_fast(
    on: Callable[[Name], None],
) -> None:
    from itm_kernels.triton._operands import kind_of

    x = torch.empty(2, 64)
    for architecture in (80, 90, 100, "gfx942"):
        on(architecture)
        assert kind_of(x) == "parts"
    for architecture in (86, 89, 120, 121):
        on(architecture)
        assert kind_of(x) == "ieee"
        assert kind_of(x.bfloat16()) == "half"


def test_a_candidate_of_tune_is_taken_whatever_the_epilogue() -> None:
    from itm_kernels.triton._operands import operands
    from itm_kernels.triton._tile_table import Tile
    from tools.gpu_check.precompile import tiled

    tile = Tile(128, 256, 64, 16, 3)
    x = torch.randn(2, 64).half()
    with tiled("half", tile):
        for epilogue in ("", "reduction", "weights", "narrow"):
            assert operands(x, x, epilogue=epilogue).tile == tile
    assert operands(x, x).tile != tile
