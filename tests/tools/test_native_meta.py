"""ATen's functions for meta tensors return what torch's Python functions return."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, _meta_registrations

from tools.native_meta import native_meta

NAME = "aten::where.self"


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


ROWS, HALF, MASK = meta(5, 8), meta(5, 8, dtype=torch.bfloat16), meta(5, 8, dtype=torch.bool)
COLUMNS = meta(8, 5).mT
CALLS: dict[str, Callable[[], Tensor]] = {
    "broadcast": lambda: HALF * ROWS[:, :1],
    "transposed": lambda: COLUMNS.exp(),
    "sum": lambda: HALF.sum(0, dtype=torch.float32),
    "norm": lambda: torch.linalg.vector_norm(COLUMNS, dim=1),
    "in place": lambda: ROWS.clone().masked_fill_(MASK, 0).clamp_min_(1),
    "product": lambda: torch.addmm(meta(8), COLUMNS, meta(8, 8)),
    "product of another type": lambda: torch.mm(HALF.mT, HALF, out_dtype=torch.float32),
    "sorted": lambda: HALF.sort(0).values,
    "isnan": lambda: COLUMNS.isnan(),
    "where": lambda: torch.where(MASK, HALF, 0),
    "where, promoted": lambda: torch.where(MASK, HALF, ROWS),
    "where, broadcast": lambda: torch.where(MASK, ROWS[:, :1], ROWS),
    "where, transposed": lambda: torch.where(meta(8, 5, dtype=torch.bool).mT, COLUMNS, 0),
    "where of numbers": lambda: torch.where(meta(dtype=torch.bool), 1.0, meta(dtype=torch.int32)),
}


def described(found: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return found.shape, found.stride(), found.dtype


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_shapes_strides_and_types_are_those_of_torch(call: Callable[[], Tensor]) -> None:
    expected = described(call())
    with native_meta():
        assert described(call()) == expected


def registered() -> set[str]:
    return set(_meta_registrations._meta_lib_dont_use_me_use_register_meta._op_impls)


def test_torchs_functions_are_registered_again() -> None:
    before, where = registered(), torch._C._dispatch_dump(NAME)
    for _ in range(2):
        with native_meta():
            assert len(registered()) < len(before)
        assert registered() == before
    assert torch._C._dispatch_dump(NAME).count("Meta") == where.count("Meta")
