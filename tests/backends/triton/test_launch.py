"""Launches by key run the kernel that Triton would have selected."""

import gc
import itertools
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from itm_kernels.triton import _launch
from itm_kernels.triton._launch import Kernel, cdiv, next_power_of_2
from tools.compile_report.triton_jobs import StandIn

pytestmark = pytest.mark.triton


class Rows(NamedTuple):
    rows: Any
    factor: Any
    stride: Any
    PARTS: Any


def add(x, operands, N, stride, margin, LIMIT: tl.constexpr, EXACT: tl.constexpr):
    pass


class Machine:
    """Compile and launch nothing; note the number of the compiled kernel of every launch."""

    def __init__(self) -> None:
        self.compiled, self.launched = 0, list[tuple[int, tuple[Any, ...]]]()

    def compile(
        self, kernel: JITFunction, key: str, signature: Any, device: Any, *rest: Any
    ) -> CompiledKernel:
        self.compiled += 1
        found: Any = CompiledKernel.__new__(CompiledKernel)
        found.function, found.packed_metadata, found.src = self.compiled, (), None
        found.name, found.module, found._run = "add", 0, self.launch
        kernel.device_caches[device][0][key] = found
        return found

    def launch(self, x: int, y: int, z: int, *given: Any) -> None:
        self.launched.append((given[1], (x, y, z, *given[6:])))

    @property
    def last(self) -> int:
        """The number of the kernel of the last launch."""
        return self.launched[-1][0]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    monkeypatch.setattr(JITFunction, "_do_compile", lambda *given: machine.compile(*given))
    monkeypatch.setattr(triton.runtime.driver, "_active", StandIn(90))
    yield machine


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[JITFunction]:
    """Kernels that took Triton's path."""
    found, run = list[JITFunction](), JITFunction.run

    def noted(self: JITFunction, *given: Any, **named: Any) -> Any:
        found.append(self)
        return run(self, *given, **named)

    monkeypatch.setattr(JITFunction, "run", noted)
    return found


def rows(dtype: torch.dtype = torch.float32, offset: int = 0) -> torch.Tensor:
    """Return rows whose address is a multiple of 16 bytes, plus an offset in elements."""
    whole = torch.empty(64, dtype=dtype)
    begin = -whole.data_ptr() % 16 // whole.element_size()
    return whole[begin + offset :]


ONE, TWO = tl.constexpr(1), tl.constexpr(2)
HALF, ZERO, MINUS_ZERO = tl.constexpr(0.5), tl.constexpr(0.0), tl.constexpr(-0.0)
TENSORS = (
    rows(), rows(offset=1), rows(torch.bfloat16), rows(torch.bfloat16, 3), rows(torch.int64),
    rows(torch.float16, 8), None,
)  # fmt: skip
INTEGERS = (0, 1, 3, 16, 17, 1024, 2**31 - 1, 2**31, 2**31 + 16, 2**62 + 1, 2**63, -16, True, 1.0)
CONSTANTS = (1, True, 1.0, 0.0, -0.0, 2, "l2", "l1", None, ONE, TWO, HALF, ZERO, MINUS_ZERO)
VARIANTS: dict[str, tuple[Any, ...]] = {
    "x": TENSORS,
    "operands": tuple(
        Rows(*members)
        for members in (
            *((each, None, 16, ONE) for each in TENSORS),
            *((rows(), each, 16, ONE) for each in TENSORS),
            *((rows(), rows(), each, ONE) for each in INTEGERS),
            *((rows(), None, 16, each) for each in (ONE, TWO, HALF, tl.constexpr("tf32"))),
        )
    ),
    "N": INTEGERS,
    "stride": INTEGERS,
    "margin": (0.0, 0.2, 1.0, 1, True, None),
    "LIMIT": CONSTANTS,
    "EXACT": CONSTANTS,
    "num_warps": (4, 8),
    "num_stages": (2, 3),
}
BASE = {name: values[0] for name, values in VARIANTS.items()}
ORDER = ("x", "operands", "N", "stride", "margin", "LIMIT", "EXACT")


def expected(kernel: Kernel, machine: Machine, named: dict[str, Any]) -> int:
    """Return the number of the kernel that Triton selects."""
    found: Any = kernel.run(grid=(1,), warmup=True, **named)
    return int(found.function)


def addresses(value: Any) -> Any:
    """Replace tensors by their addresses."""
    if isinstance(value, tuple):
        return tuple(map(addresses, value))
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("options", [{}, {"do_not_specialize": ["N"]}])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_launch_runs_the_kernel_that_triton_selects(
    name: str, options: dict[str, Any], machine: Machine
) -> None:
    kernel = Kernel(add, **options)
    calls = [{**BASE, name: value} for value in VARIANTS[name]]
    for named in (*calls, *reversed(calls)):
        kernel[(1,)](**named)
        assert machine.last == expected(kernel, machine, named), named[name]
    assert machine.compiled > 1


def test_two_changed_arguments_run_the_kernel_that_triton_selects(machine: Machine) -> None:
    kernel = Kernel(add)
    few = {name: values[:3] for name, values in VARIANTS.items()}
    for one, other in itertools.combinations(few, 2):
        for a, b in itertools.product(few[one], few[other]):
            named = {**BASE, one: a, other: b}
            kernel[(1,)](**named)
            assert machine.last == expected(kernel, machine, named)


def test_known_key_skips_triton_and_passes_parameters_in_order(
    machine: Machine, runs: list[JITFunction]
) -> None:
    kernel = Kernel(add)
    named = {name: BASE[name] for name in (*reversed(ORDER), "num_warps", "num_stages")}
    for grid in ((3,), (3, 4), (3, 4, 5)):
        kernel[grid](**named)
    others = {name: value for name, value in BASE.items() if name not in ORDER[:2]}
    for grid in ((6,), (7,)):
        kernel[grid](BASE["x"], BASE["operands"], **others)
    assert len(runs) == 2
    assert machine.compiled == 1
    grids = [given[:3] for _, given in machine.launched]
    assert grids == [(3, 1, 1), (3, 4, 1), (3, 4, 5), (6, 1, 1), (7, 1, 1)]
    passed = addresses(tuple(BASE[name] for name in ORDER))
    assert [addresses(given[3:]) for _, given in machine.launched] == [passed] * 5
    assert [machine.launched[k][1][3:] for k in (1, 2, 4)] == [passed] * 3  # no tensors


def test_unaligned_member_of_a_tuple_that_was_empty_is_looked_up(machine: Machine) -> None:
    kernel = Kernel(add)
    for factor in (None, rows(offset=1), rows(), None):
        named = {**BASE, "operands": Rows(rows(), factor, 16, ONE)}
        kernel[(1,)](**named)
        assert machine.last == expected(kernel, machine, named)


def test_devices_and_drivers_have_kernels_of_their_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(add)
    for architecture in (90, 80, 90):
        monkeypatch.setattr(triton.runtime.driver, "_active", StandIn(architecture))
        kernel[(1,)](**BASE)
        assert machine.last == expected(kernel, machine, BASE)
    assert machine.compiled == 2


@pytest.mark.parametrize("setting", ["launch_enter_hook", "launch_exit_hook"])
def test_hook_is_called_at_every_launch(
    setting: str, machine: Machine, runs: list[JITFunction]
) -> None:
    kernel, hook = Kernel(add), getattr(knobs.runtime, setting)
    kernel[(1,)](**BASE)
    hook.add(print)
    try:
        kernel[(1,)](**BASE)
        kernel[(1,)](**BASE)
    finally:
        hook.remove(print)
    assert len(runs) == 3
    kernel[(1,)](**BASE)
    assert len(runs) == 3


def test_debugging_takes_the_path_of_triton(
    machine: Machine, runs: list[JITFunction], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(add)
    kernel[(1,)](**BASE)
    with monkeypatch.context() as changed:
        changed.setattr(knobs.runtime, "debug", True)
        kernel[(1,)](**BASE)
    assert (len(runs), machine.compiled) == (2, 2)
    kernel.add_pre_run_hook(lambda *given, **named: None)
    kernel[(1,)](**BASE)
    assert len(runs) == 3


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "value", [rows().as_subclass(Subclass), (1, 2), Rows(Rows(1, 1, 1, 1), 1, 1, 1)]
)
def test_unknown_types_take_the_path_of_triton(
    value: Any, machine: Machine, runs: list[JITFunction]
) -> None:
    kernel = Kernel(add)
    for _ in range(3):
        kernel[(1,)](**{**BASE, "operands": value})
    assert len(runs) == 3


def test_keys_hold_no_tensor(machine: Machine) -> None:
    kernel, x = Kernel(add), rows()
    gone = weakref.ref(x)
    for _ in range(2):
        kernel[(1,)](**{**BASE, "x": x, "operands": Rows(x, x, 1, ONE)})
    machine.launched.clear()
    del x
    gc.collect()
    assert gone() is None


def test_changing_sizes_keep_a_bounded_number_of_keys(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_launch, "MOST_KEYS", 4)
    kernel = Kernel(add)
    for N in range(20):
        kernel[(1,)](**{**BASE, "N": N})
    assert 0 < len(kernel._ready) <= 4


def test_launch_without_an_argument_raises_as_triton_does(machine: Machine) -> None:
    kernel = Kernel(add)
    for _ in range(2):
        with pytest.raises(TypeError, match="EXACT"):
            kernel[(1,)](**{name: value for name, value in BASE.items() if name != "EXACT"})


def test_unknown_version_uses_triton_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "SUPPORTED", False)
    assert not isinstance(_launch.jit(add), Kernel)
    assert not isinstance(_launch.jit(do_not_specialize=["N"])(add), Kernel)


def test_every_kernel_is_launched_by_key() -> None:
    sources = {path.name: path.read_text() for path in Path(_launch.__file__).parent.glob("*.py")}
    launched = set(re.findall(r"\b(\w+_kernel)\[.*\]\(", "".join(sources.values())))
    declared = r"^@(\w+\.)?jit(?:\([^)]*\))?\ndef (\w+_kernel)\("
    found = [m for source in sources.values() for m in re.findall(declared, source, re.M)]
    assert launched <= {name for _, name in found}
    assert [name for module, name in found if module] == []
    slow = [name for name, source in sources.items() if re.search(r"\btriton\.cdiv\(", source)]
    assert slow == []


def test_sizes_of_grids_equal_those_of_triton() -> None:
    for number in range(1, 70):
        assert next_power_of_2(number) == triton.next_power_of_2(number)
        assert [cdiv(number, k) for k in (1, 3, 16)] == [triton.cdiv(number, k) for k in (1, 3, 16)]
