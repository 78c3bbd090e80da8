"""A package that is imported twice reuses its operators in torch's registry."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from itm_kernels import backends
from itm_kernels.ops import _define

ROOT = Path(__file__).parents[2]

# A notebook discards the package and imports it again; an editor reloads its modules one
# by one. torch.compile comes after the purge only: Dynamo keeps the modules of any
# package that it has traced for the life of the process.
AGAIN = """
import importlib, sys
import torch

def numbers():
    from loss_cases import CASES, batch, gradients
    found = []
    for case in CASES:
        rows = batch(8, 5)
        torch.manual_seed(0)
        loss = case.loss(*rows, "auto")
        found += [loss.detach(), *gradients(loss, *rows)]
    return found

def compiled():
    from itm_kernels import losses
    from loss_cases import batch, gradients
    torch._dynamo.reset()
    rows = batch(8, 5)
    loss = torch.compile(losses.SumOfHingesLoss(), backend="aot_eager", fullgraph=True)(*rows)
    return [loss.detach(), *gradients(loss, *rows)]

def agree(first, second):
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second))

first = numbers()
kept = sys.modules["itm_kernels.losses"].MaxOfHingesLoss()
for name in list(sys.modules):
    if name.startswith(("itm_kernels", "loss_cases")):
        del sys.modules[name]
import itm_kernels
agree(first, numbers())
assert torch.isfinite(kept(torch.eye(3), torch.eye(3)))  # a loss of the first import
graph = compiled()
agree(graph, first[:3])  # the first case
importlib.reload(itm_kernels)
for name in [name for name in sys.modules if name.startswith("itm_kernels.ops.")]:
    importlib.reload(sys.modules[name])
agree(first, numbers())
agree(graph, compiled())
defined = [definition.name for definition in itm_kernels.ops._define.DEFINITIONS]
assert len(set(defined)) == len(defined)
print("the same")
"""


def test_importing_twice_gives_the_same_numbers() -> None:
    command = [sys.executable, "-c", AGAIN]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.strip() == "the same", done.stdout + done.stderr
    assert "previously registered" not in done.stderr  # torch's warning of a kernel replaced


def test_another_versions_operators_are_named() -> None:
    namespace = backends.NAMESPACES["native"]
    other = next(d for d in _define.DEFINITIONS if d.name == "kmeans")._replace(
        schema="(Tensor x) -> Tensor"
    )
    with pytest.raises(
        RuntimeError,
        match=r"itm_kernels: itm_native::kmeans is registered by another version of the package as "
        r"itm_native::kmeans\(.*, this version needs itm_native::kmeans\(Tensor x\) -> Tensor; "
        r"restart Python to import it",
    ):
        _define.define_in(namespace, other)


def test_an_extension_of_another_version_is_named() -> None:
    """A checkout that was updated and not built again."""
    torchs = RuntimeError(
        "... specified schema: (Tensor x) ...\n inferred schema: (Tensor x, int y)"
    )
    new = _define.DEFINITIONS[0]._replace(name="not_defined_yet")
    with (
        patch("torch.library.define", side_effect=torchs),
        pytest.raises(
            RuntimeError,
            match=r"itm_kernels: itm_native::not_defined_yet of the extension is from another "
            r"version of the package; to rebuild it, run `ITM_KERNELS_BUILD=1 pip install",
        ),
    ):
        _define.define_in(backends.NAMESPACES["native"], new)
