"""Tests of one operator that run on the kernels of every backend.

The fixture `kernels` is a namespace of torch.ops: the compiled kernels of the CPU ("native"), the
CUDA kernels on the emulator ("emulated") or the interpreted Triton kernels ("triton"). Inside such
a test backend="auto" chooses the same kernels.

Every parameter has the marker of its backend, which make selects by (`-m triton`), and is skipped
where that backend cannot run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch

import emulated
from compiled import needs_extension
from interpreted import needs_interpreter
from itm_kernels import backends

Test = TypeVar("Test", bound=Callable[..., None])
MARKS = {
    "native": [pytest.mark.native, needs_extension],
    "emulated": [pytest.mark.emulated, emulated.needs_compiler],
    "triton": [pytest.mark.triton, needs_interpreter],
}
NAMESPACES = {**backends.NAMESPACES, "emulated": emulated.NAMESPACE}


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on the kernels of these backends only."""
    values = [pytest.param(name, marks=MARKS[name]) for name in names]
    return pytest.mark.parametrize("kernels", values, indirect=True)


def only(name: str) -> Callable[[Test], Test]:
    """Mark a test that names its backend itself."""

    def marked(test: Test) -> Test:
        for mark in MARKS[name]:
            test = mark(test)
        return test

    return marked


def cases(parameters: str, **values: Sequence[Any]) -> pytest.MarkDecorator:
    """Run a test on the backends that are named, each with cases of its own."""
    every = [
        pytest.param(name, *(case if "," in parameters else (case,)), marks=MARKS[name])
        for name, own in values.items()
        for case in own
    ]
    return pytest.mark.parametrize(f"kernels, {parameters}", every, indirect=["kernels"])


@contextmanager
def running(name: str) -> Iterator[Any]:
    """Let "auto" choose the kernels of a backend; give their namespace."""
    if name == "emulated":
        with emulated.as_native():
            yield getattr(torch.ops, emulated.NAMESPACE)
        return
    with patch.dict(backends.PREFERENCE, cpu=(name,)):
        yield getattr(torch.ops, NAMESPACES[name])
