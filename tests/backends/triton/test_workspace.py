"""No operator in Triton holds an N x M tensor: every allocation of its launchers is checked.

Launchers allocate meta tensors here, which may be of any size, and launch nothing.
Tiles and precisions are those of a GPU.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from itm_kernels import backends

pytest.importorskip("triton")

# similarity returns a matrix of this size. Operators of given scores get one, and return its
# gradient: `test_given_scores_leave_a_small_part_of_them`.
OPERATORS = [name for name in backends.OPERATORS if backends.triton_file(name)]
OF_SCORES = [name for name in OPERATORS if name.endswith("_from_scores")]
BOUNDED = sorted(set(OPERATORS) - {"similarity", *OF_SCORES})

N, D = 16384, 256  # of either side
SMALLEST_TILE = 64  # rows or columns that leave one number each, at this size
# A block of weights as large as both inputs in fp32, or a number per row and tile: 34 MB where the
# scores are 1,074.
LARGEST = 4 * 2 * N * max(D, N // SMALLEST_TILE)
# Inputs, bf16 parts of them, of their pairs and of their images, a block, gradients in fp32: sum of
# hinges with ids takes 9 of the 10.
ALIVE = 10 * LARGEST
SCORES = 4 * N * N
# The products of a chunk of contexts, whatever the size of the batch.
CHUNK = 1 << 26
OF_CHUNKS = ("late_interaction", "cross_attention")
# Outputs of an operator may be larger than that: here one vector for each of 4 clusters.
RETURNED = {"rbf_synthesis": 4 * N * 4 * D}


class Workspace(TorchDispatchMode):
    """Record the bytes of the largest tensor that any operation returns, and of all that exist."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = 0
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple,
        kwargs: dict | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.alive[reference.cdata] = reference, storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        self.alive = {at: held for at, held in self.alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, architecture: int = 90) -> Iterator[Workspace]:
    """Watch launchers that choose tiles for a GPU and launch nothing."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from itm_kernels.triton import _operands, _tile_table

    # A module that is imported first under these settings would keep them.
    for operator in OPERATORS:
        importlib.import_module(f"itm_kernels.triton.{backends.triton_file(operator)}")
    for kernel in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kernel, "run", lambda *args, **options: None)
    monkeypatch.setattr(_operands, "INTERPRETED", False)
    for module in (_operands, _tile_table):
        monkeypatch.setattr(module, "architecture", lambda: architecture)
    with Workspace() as workspace:
        yield workspace


def launch(operator: str, dtype: torch.dtype = torch.float32) -> None:
    """Run an operator's launchers forward and backward, with ids and without, in every mode."""
    from tools.compile_report.triton_launches import LAUNCHES

    LAUNCHES[operator](N, D, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", BOUNDED)
def test_no_workspace_is_as_large_as_the_scores(
    operator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as workspace:
        launch(operator, dtype)
    assert LARGEST < SCORES / 30
    chunk = CHUNK if operator in OF_CHUNKS else 0
    assert 0 < workspace.largest <= max(LARGEST, RETURNED.get(operator, 0), chunk)
    # Outputs exist once, and their gradients once.
    assert workspace.peak <= ALIVE + 2 * RETURNED.get(operator, 0) < SCORES / 2


@pytest.mark.parametrize("operator", OF_SCORES)
def test_given_scores_leave_a_small_part_of_them(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores, their gradient, and two numbers per row or column of a tile of 32 x 32."""
    with watched(monkeypatch) as workspace:
        launch(operator)
    assert workspace.largest == SCORES
    assert 2 * SCORES < workspace.peak <= 2 * SCORES + 2 * SCORES * 2 // 32 + LARGEST


def test_a_kernel_that_leaves_every_score_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher acts as if a tile were one candidate."""
    from itm_kernels.triton import _hardest

    empty = _hardest.empty_tile_maxima
    monkeypatch.setattr(_hardest, "empty_tile_maxima", lambda *shape: empty(*shape[:-1], 1))
    with watched(monkeypatch) as workspace:
        launch("max_of_hinges")
    assert workspace.largest == SCORES > LARGEST


def test_blocks_that_are_kept_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a block of rows outlive it."""
    from itm_kernels.triton import _hinge_gradients

    kept = []
    weights_empty = _hinge_gradients.weights_empty

    def kept_empty(*arguments: object) -> Tensor:
        kept.append(weights_empty(*arguments))
        return kept[-1]

    monkeypatch.setattr(_hinge_gradients, "weights_empty", kept_empty)
    with watched(monkeypatch) as workspace:
        launch("sum_of_hinges")
    assert workspace.largest <= LARGEST
    assert workspace.peak > SCORES > ALIVE


def test_watched_allocations() -> None:
    x = torch.empty(N, D, device="meta")
    seen = x.untyped_storage().nbytes()  # as x.T, a view of what was there before
    with Workspace() as workspace:
        (x @ x.T).logsumexp(1)
    assert workspace.largest == SCORES  # though no reference to it remains
    assert workspace.peak == SCORES + seen + 4 * N
    with Workspace() as workspace:
        for _ in range(3):
            block = x[:1024] @ x.T
        assert block[3:].shape == (1021, N)  # a view takes nothing
    assert workspace.largest == SCORES // 16
    # The old block goes when the new one is there.
    assert workspace.peak == 2 * workspace.largest + seen
