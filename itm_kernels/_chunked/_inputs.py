"""Inputs of an encoder: which tensors are split, and the chunks."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

from itm_kernels import _checks
from itm_kernels._describe import shape
from itm_kernels._public import UnnamedTypeError, UnnamedValueError


class Inputs:
    """Positional and keyword inputs, flattened; tensors are taken out of the structure."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], shared: Collection[str | int]
    ) -> None:
        if isinstance(shared, str | int) or not isinstance(shared, Collection):
            raise UnnamedTypeError(
                "shared must be a collection of names and positions, like ('mask',), "
                f"got {_checks.shown(shared)}"
            )
        self.leaves, self.structure = tree_flatten((args, kwargs))
        self.tensors: list[Tensor] = []
        self.places: list[int] = []  # of tensors among the leaves
        self.is_split: list[bool] = []
        self.rows = -1
        names: list[tuple[str, set[str | int]]] = []
        tops: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
        for top, value in tops:
            names += _names(top, value)
        used: set[str | int] = set()
        first = ""
        for place, (name, keys) in enumerate(names):
            value = self.leaves[place]
            whole = keys.intersection(shared)
            used |= whole
            if isinstance(value, Mapping):
                kind = type(value).__name__
                raise UnnamedTypeError(f"{name} is a {kind}, which is not split; pass a dict of it")
            if not isinstance(value, Tensor):
                continue
            self.places.append(place)
            self.tensors.append(_checks.is_tensor(name, value))
            self.leaves[place] = None
            self.is_split.append(value.dim() > 0 and not whole)
            if not self.is_split[-1]:
                continue
            if self.rows < 0:
                self.rows, first = value.shape[0], f"{name} {shape(value.shape)}"
            elif value.shape[0] != self.rows:
                raise UnnamedValueError(
                    f"{first} and {name} {shape(value.shape)} differ in rows; name tensors "
                    "without the batch dimension in shared="
                )
        if unknown := [entry for entry in shared if entry not in used]:
            raise UnnamedValueError(
                f"shared names {_checks.shown(unknown[0])}, which is no keyword input, dictionary "
                "key or position of an input"
            )
        if self.rows < 0:
            raise UnnamedValueError(
                "no input can be split; pass at least one tensor with the batch dimension first"
            )

    def chunk(
        self, tensors: Sequence[Tensor], start: int, stop: int, *, leaves: bool
    ) -> tuple[Any, Any, list[Tensor]]:
        """Return args, kwargs and tensors of a chunk; if `leaves`, each is a leaf of a graph."""
        parts = []
        for tensor, is_split in zip(tensors, self.is_split, strict=True):
            part = tensor.detach()
            part = part[start:stop] if is_split else part
            parts.append(part.requires_grad_(leaves and tensor.requires_grad))
        values = list(self.leaves)
        for place, part in zip(self.places, parts, strict=True):
            values[place] = part
        args, kwargs = tree_unflatten(values, self.structure)
        return args, kwargs, parts


def _names(top: str | int, value: object) -> list[tuple[str, set[str | int]]]:
    """Return, for each leaf of an input, its name in messages and what `shared` may call it."""
    name = f"input {top}" if isinstance(top, int) else top
    try:
        paths = [path for path, _ in tree_flatten_with_path(value)[0]]
    except ValueError:  # a container that was registered without names
        return [(name, {top})] * len(tree_flatten(value)[0])
    keys = [{getattr(step, "key", getattr(step, "name", None)) for step in path} for path in paths]
    return [
        (name + keystr(path), {top, *(key for key in found if isinstance(key, str))})
        for path, found in zip(paths, keys, strict=True)
    ]
