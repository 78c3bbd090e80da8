"""Gluon kernels compute what the Triton kernels compute; their pipelines neither race nor stall.

They are interpreted by `gluon_interpreter.py`. Numbers are small integers, so that scores are exact
and every row has ties.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from gluon_interpreter import Interpreter, Kernel
from itm_kernels.triton import _hardest, gluon
from itm_kernels.triton._operands import Operands, Tile
from itm_kernels.triton.gluon import hardest, log_sum_exp
from tools.gpu_check import gluon as check
from tools.gpu_check import values
from tools.gpu_check.journal import Setting

NO_KEY, KEY_OF_NAN = -(2**31), 2**31 - 1
TILE = Tile(128, 256, 64, 4, 4)
PAIRS = {  # of parts, low to high
    1: ((0, 0),),
    2: ((1, 0), (0, 1), (0, 0)),
    3: ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)),
}


def keys_of(scores: Tensor) -> Tensor:
    bits = (scores + 0.0).view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return torch.where(scores == scores, keys, KEY_OF_NAN)


def best_of(keys: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """Return the highest key and its lowest column, `[tiles, rows]`, of every tile of columns."""
    highest, winners = [], []
    for first in range(0, keys.shape[1], at_once):
        tile = keys[:, first : first + at_once]
        highest.append(tile.max(1).values)
        winners.append(first + (tile == highest[-1][:, None]).int().argmax(1))
    return torch.stack(highest), torch.stack(winners)


def sums_of(logits: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """Return the highest logit and the log-sum-exp of every tile of columns, `[tiles, rows]`."""
    found = []
    for first in range(0, logits.shape[1], at_once):
        tile = logits[:, first : first + at_once].double()
        highest = torch.where(tile.isnan(), -torch.inf, tile).max(1).values
        highest = torch.where(highest.isinf(), 0, highest)
        found.append((highest, (tile - highest[:, None]).exp().sum(1).log()))
    return tuple(torch.stack(each) for each in zip(*found, strict=True))


def operands(N: int, M: int, D: int, parts: int, special: bool) -> Operands:
    draw = torch.Generator().manual_seed(N + M + D)
    x, y = (torch.randint(-3, 4, (parts, rows, D), generator=draw) for rows in (N, M))
    x, y = x.bfloat16(), y.bfloat16()
    if special:  # rows of NaN, infinity and its opposite, some of them both; and zeros
        x[0, 3, 1], x[0, N - 2, 3] = torch.nan, torch.inf
        y[0, 7, 2], y[0, M - 1, 0], y[0, 5] = torch.inf, -torch.inf, 0
    return Operands(x, y, "half", "ieee", TILE)


def scores_of(both: Operands) -> Tensor:
    x, y = both.x.float(), both.y.float()
    return sum(x[i] @ y[j].mT for i, j in PAIRS[len(x)])


@contextmanager
def interpreted(programs: int) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name in ((hardest, "_hardest_kernel"), (log_sum_exp, "_log_sum_exp_kernel")):
            kernel = Kernel(getattr(module, name), seed=programs)
            stack.enter_context(patch.object(module, name, kernel))
            stack.enter_context(patch.object(module, "grid", lambda both: (programs,)))
        yield


@pytest.mark.parametrize(
    ("N", "M", "D", "parts", "programs", "ids", "special"),
    [
        (1, 2, 8, 1, 1, False, False),
        (200, 300, 136, 1, 2, False, True),  # two tiles a program
        (129, 513, 72, 1, 3, True, True),
        (300, 200, 520, 1, 1, False, False),  # nine steps a tile: the ring goes round
        (70, 40, 64, 2, 2, True, False),  # one program without a tile
        (130, 260, 128, 3, 1, False, True),
        (1100, 260, 64, 1, 2, False, False),  # more than a group of row tiles, one step a tile
    ],
)
def test_hardest_of_every_tile(
    N: int, M: int, D: int, parts: int, programs: int, ids: bool, special: bool
) -> None:
    both = operands(N, M, D, parts, special)
    x_ids, y_ids = (torch.arange(rows) % 37 * (2**32 + 1) if ids else None for rows in (N, M))
    off = torch.arange(N)[:, None] == torch.arange(M)
    if x_ids is not None and y_ids is not None:
        off = x_ids[:, None] == y_ids
    keys = torch.where(off, NO_KEY, keys_of(scores_of(both)))
    with interpreted(programs):
        row, column = hardest.hardest(both, x_ids, y_ids)
    for found, (key, winner) in ((row, best_of(keys, 256)), (column, best_of(keys.mT, 64))):
        assert torch.equal(found.key, key)
        some = key != NO_KEY  # without a candidate an index is undefined
        assert torch.equal(found.candidate[some], winner[some].int())


@pytest.mark.parametrize(
    ("N", "M", "D", "parts", "programs", "scale", "factors", "ids", "owned", "special"),
    [
        (1, 2, 8, 1, 1, 0.5, False, False, False, False),
        (200, 300, 136, 1, 2, 0.125, True, False, True, False),
        (129, 513, 72, 1, 3, 0.125, True, True, True, False),
        (300, 200, 520, 2, 1, 1.0, False, False, True, False),  # beyond e^60 between maxima
        (130, 260, 128, 1, 2, 1.0, True, True, False, True),
    ],
)
def test_log_sums_of_every_tile(
    N: int, M: int, D: int, parts: int, programs: int, scale: float, factors: bool, ids: bool,
    owned: bool, special: bool,
) -> None:  # fmt: skip
    both = operands(N, M, D, parts, special)
    logits = scale * scores_of(both)
    if factors:  # powers of two: logits stay exact
        x_factor, y_factor = (2.0 ** (torch.arange(rows) % 3 - 1) for rows in (N, M))
        both = both._replace(x_factor=x_factor, y_factor=y_factor)
        logits = logits * x_factor[:, None] * y_factor
    positive = (torch.arange(M) * 7 % (N + 2) - 1) if owned else None  # some are out of range
    x_ids, y_ids = (torch.arange(rows) % 37 * (2**32 + 1) if ids else None for rows in (N, M))
    with interpreted(programs):
        given = both, torch.tensor(scale), x_ids, y_ids, positive
        row, column, of_positive = log_sum_exp.tile_log_sums(*given)
    if positive is not None:
        own = logits[positive.clamp(0, N - 1), torch.arange(M)]
        own = torch.where((positive >= 0) & (positive < N), own, torch.nan)
        torch.testing.assert_close(of_positive, own, rtol=0, atol=0, equal_nan=True)
    if x_ids is not None and y_ids is not None:
        logits = torch.where(x_ids[:, None] == y_ids, -torch.inf, logits)
    # An exponent of 60 is rounded to 5e-6.
    for found, (highest, sums) in ((row, sums_of(logits, 256)), (column, sums_of(logits.mT, 64))):
        torch.testing.assert_close(found[0].double(), highest, rtol=0, atol=0)
        torch.testing.assert_close(found[1].double(), sums, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("fault", ["one arrival", "three arrivals", "no waiting"])
def test_interpreter_finds_a_faulty_ring(fault: str) -> None:
    """Two warpgroups read a stage: after one arrival it is too early, a third never comes."""
    both = operands(128, 256, 640, 1, False)  # ten steps: the ring goes round twice
    keys = keys_of(scores_of(both)).fill_diagonal_(NO_KEY)
    init, arrivals = Interpreter.init, {"one arrival": 1, "three arrivals": 3}.get(fault, 2)

    def counting(self: Interpreter, barrier: object, count: int) -> None:
        init(self, barrier, arrivals if count == 2 else count)

    def at_once(self: Interpreter, barrier: object, phase: int, pred: bool = True) -> None:
        self.machine.wait()

    with ExitStack() as stack:
        stack.enter_context(interpreted(1))
        stack.enter_context(patch.object(Interpreter, "init", counting))
        if fault == "no waiting":
            stack.enter_context(patch.object(Interpreter, "wait", at_once))
        stack.enter_context(pytest.raises((AssertionError, RuntimeError)))
        row, _ = hardest.hardest(both, None, None)
        assert torch.equal(row.key, best_of(keys, 256)[0])


def half(N: int, D: int, begin: int = 0, stride: int = 0) -> Operands:
    stride = stride or D
    x = torch.empty(begin + N * stride, dtype=torch.bfloat16, device="meta")
    x = x[begin:].as_strided((1, N, D), (N * stride, stride, 1), begin)
    return Operands(x, x, "half", "ieee", TILE)


def test_a_kernel_is_taken_only_when_it_was_measured() -> None:
    with patch.object(gluon, "architecture", lambda: 90):
        for kernel in gluon.KERNELS:
            assert gluon.is_selected(kernel, half(8192, 1024)) is (kernel in gluon.PROVEN)


@pytest.mark.parametrize(
    ("architecture", "both", "taken"),
    [
        (90, half(8192, 1024), True),
        (90, half(8192, 1000, stride=1008), True),
        (90, half(8192, 1001, stride=1001), False),  # rows of other than 16 bytes
        (90, half(8192, 1024, begin=4), False),
        (90, half(2048, 1024), False),  # one tile a processor
        (90, half(8192, 128), False),
        (90, half(8192, 1024)._replace(kind="tf32"), False),
        (100, half(8192, 1024), False),
        ("gfx942", half(8192, 1024), False),
    ],
)
def test_takes_what_tma_can_copy_and_pays(
    architecture: object, both: Operands, taken: bool
) -> None:
    with (
        patch.object(gluon, "PROVEN", frozenset(gluon.KERNELS)),
        patch.object(gluon, "architecture", lambda: architecture),
    ):
        assert gluon.is_selected("hardest", both) is taken


@pytest.mark.parametrize(("version", "there"), [("3.5.1", False), ("3.10.0+git", True)])
def test_an_old_triton_has_no_second_kernels(version: str, there: bool) -> None:
    with patch.object(gluon.triton, "__version__", version):
        for kernel in gluon.KERNELS:
            assert gluon.is_available.__wrapped__(kernel) is there


@pytest.mark.parametrize("semihard", [False, True])
def test_hardest_takes_the_second_kernel(semihard: bool) -> None:
    image, text = torch.eye(5, 8), torch.eye(6, 8)
    with (
        patch.object(gluon, "is_selected", lambda kernel, both: kernel == "hardest"),
        patch.object(hardest, "hardest", lambda *_: "second"),
    ):
        found = _hardest.hardest(image, text, None, None, None, semihard)
    assert (found == "second") is not semihard


@pytest.mark.parametrize("kernel", check.USERS)
def test_operators_keep_the_error_rule_with_the_second_kernel(kernel: str, tmp_path: Path) -> None:
    """What `gpu_check` does on a GPU, here interpreted; fp16 is left as it is."""
    here = Setting("cpu", True, tmp_path, time.time() + 60)
    operation = values.everything()[kernel_user := check.USERS[kernel][0]][0]
    compare = partial(values.compare, kernel_user, operation, "triton", "fp16", 150, 72, here)
    with interpreted(1), patch.object(check, "why_not", lambda device: None):
        found = check.compared(kernel, here, compare)
        assert found["launches"] and found["worst"] <= 1
        with pytest.raises(AssertionError, match=f"{kernel} was not launched"):
            check.compared(kernel, here, dict)
