"""Outputs of an encoder: chunks are written into tensors of the whole batch."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from itm_kernels import _checks
from itm_kernels._describe import dtype_name, shape
from itm_kernels._public import UnnamedValueError


class Outputs:
    """Outputs of the whole batch, allocated once: concatenation would need them twice."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.values: list[Any] = []
        self.structure: TreeSpec | None = None

    def write(self, result: Any, start: int, stop: int) -> list[Any]:
        """Copy the outputs of a chunk into those of the batch; return them flattened."""
        values, structure = tree_flatten(result)
        if self.structure is None:
            self.structure = structure
            self.values = [self._allocate(i, v, stop - start) for i, v in enumerate(values)]
        if structure != self.structure:
            raise UnnamedValueError(
                "outputs of two chunks differ in structure; the encoder must return the same "
                "containers for every chunk"
            )
        for i, (whole, value) in enumerate(zip(self.values, values, strict=True)):
            if not isinstance(whole, Tensor) or not isinstance(value, Tensor):
                if not _same(whole, value):
                    raise UnnamedValueError(
                        f"output {i} is {_checks.shown(whole)} in one chunk and "
                        f"{_checks.shown(value)} in another; what is not a tensor must be equal "
                        "in all chunks"
                    )
                continue
            if value.shape[1:] != whole.shape[1:] or value.dtype != whole.dtype:
                raise UnnamedValueError(
                    f"output {i} of two chunks differs, {_row(whole)} and {_row(value)}; pad it to "
                    "one shape, and convert it to one dtype"
                )
            if value.shape[0] != stop - start:
                raise UnnamedValueError(_rows(i, value, stop - start))
            with torch.no_grad():
                whole[start:stop].copy_(value)
        return values

    def whole(self) -> Any:
        """Return the outputs of the batch in the encoder's structure."""
        assert self.structure is not None
        return tree_unflatten(self.values, self.structure)

    def _allocate(self, i: int, value: Any, rows: int) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() == 0 or value.shape[0] != rows:
            raise UnnamedValueError(_rows(i, value, rows))
        return value.detach().new_empty((self.rows, *value.shape[1:]))


def _rows(i: int, value: Tensor, rows: int) -> str:
    return (
        f"output {i} has shape {shape(value.shape)} for a chunk of {rows} rows; "
        "every output tensor needs one row per row of the inputs"
    )


def _row(value: Tensor) -> str:
    return f"{dtype_name(value.dtype)} {shape(value.shape[1:])} per row"


def _same(first: object, second: object) -> bool:
    try:
        return first is second or bool(first == second)
    except Exception:  # arrays of another library
        return False
