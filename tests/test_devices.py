"""What a GPU must be for "auto" to take the Triton kernels, with faked devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch

from itm_kernels import __main__, _devices, backends


@contextmanager
def gpus(*capabilities: tuple[int, int], amd: str | None = None) -> Iterator[None]:
    """Let GPUs of some capabilities, or AMD's, seem to be there with kernels for everything."""
    asked = list[int]()

    def capability(device: int) -> tuple[int, int]:
        asked.append(device)
        return capabilities[device]

    properties = SimpleNamespace(gcnArchName=f"{amd}:sramecc+:xnack-")
    caches = (_devices._capability, _devices._amd_architecture)
    for cache in caches:
        cache.cache_clear()
    with (
        patch.object(_devices, "_there", lambda: True),  # torch's own would mislead torch
        patch.multiple(
            torch.cuda,
            current_device=lambda: 0,
            get_device_capability=capability,
            get_device_properties=lambda device: properties,
        ),
        patch.object(torch.version, "hip", amd and "6.4"),
        patch.multiple(backends, HAS_TRITON=True, TRITON_FILES=frozenset(backends.OPERATORS)),
        patch.dict(backends.NATIVE_KERNELS, cuda=frozenset[str]()),
    ):
        yield
    for cache in caches:
        cache.cache_clear()
    assert len(asked) == len(set(asked))  # each is asked once


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
def test_auto_takes_triton_from_capability_8_on(capability: tuple[int, int]) -> None:
    with gpus(capability):
        assert backends.choose("max_of_hinges", "cuda") == "triton"
        assert backends.choose("max_of_hinges", "cuda", index=0) == "triton"


def test_an_older_gpu_runs_the_reference_and_info_says_why() -> None:
    reason = "needs compute capability 8.0, this device has 7.5"
    with gpus((7, 5)):
        assert backends.choose("max_of_hinges", "cuda") == "reference"
        assert backends.why_not("max_of_hinges", "cuda", "triton") == reason
        assert __main__.info().count(f"triton: {reason}") == 1


def test_every_device_is_chosen_for_by_its_own_capability() -> None:
    old, new = (Mock(device=torch.device("cuda", index)) for index in (0, 1))
    with gpus((7, 0), (9, 0)):
        assert backends.resolve("f", "sigmoid", old, "auto", (8, 8)) is None
        assert backends.resolve("f", "sigmoid", new, "auto") == backends.NAMESPACES["triton"]
        with pytest.raises(RuntimeError, match=r"triton: needs .* 8\.0, this device has 7\.0"):
            backends.resolve("f", "sigmoid", old, "triton")


def test_amd_runs_what_the_compile_check_compiles_for_it() -> None:
    some = frozenset({"max_of_hinges", "ranks"})
    assert some < _devices.AMD_OPERATORS <= set(backends.OPERATORS)
    with (
        gpus(amd=_devices.AMD_ARCHITECTURE),
        patch.object(_devices, "AMD_OPERATORS", some),
    ):
        for operator in backends.OPERATORS:
            compiled = operator in some
            assert backends.choose(operator, "cuda") == ("triton" if compiled else "reference")
    with gpus(amd="gfx1100"):
        assert backends.choose("ranks", "cuda") == "reference"
        assert "compiled for AMD's gfx942 only, this device is gfx1100" in __main__.info()


def test_without_a_gpu_nothing_is_asked_and_nothing_refused() -> None:
    with (
        patch.object(_devices, "_there", lambda: False),
        patch.object(torch.cuda, "get_device_capability", Mock(side_effect=AssertionError)),
    ):
        assert _devices.why_no_triton("sigmoid") is None


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), False), ((8, 9), True)])
def test_the_choice_is_a_constant_of_a_compiled_graph(
    capability: tuple[int, int], taken: bool
) -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        backend = backends.choose("max_of_hinges", "cuda", index=0)
        return x * (2 if backend == "triton" else 3)

    with gpus(capability):
        torch.compiler.reset()
        found = torch.compile(scaled, backend="eager", fullgraph=True)(torch.ones(1))
    assert found.item() == (2 if taken else 3)
