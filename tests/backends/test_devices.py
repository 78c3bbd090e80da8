"""The GPUs on which "auto" chooses kernels, with faked devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch

from itm_kernels import __main__, _checks, _devices, backends
from tools.compile_report.triton_launches import LAUNCHES


@contextmanager
def gpus(*capabilities: tuple[int, int], amd: str | None = None) -> Iterator[None]:
    """Pretend that there are GPUs of some capabilities, or AMD's, with kernels for everything."""
    asked = list[int]()

    def capability(device: int) -> tuple[int, int]:
        asked.append(device)
        return capabilities[device]

    properties = SimpleNamespace(gcnArchName=f"{amd}:sramecc+:xnack-")
    caches = (_devices._capability, _devices._amd_architecture)
    for cache in caches:
        cache.cache_clear()
    with (
        patch.object(_devices, "_there", lambda: True),  # patching torch's own would mislead torch
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
    assert len(asked) == len(set(asked))  # each is queried once


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
def test_auto_takes_triton_from_capability_8_on(capability: tuple[int, int]) -> None:
    with gpus(capability):
        assert backends.choose("max_of_hinges", "cuda") == "triton"
        assert backends.choose("max_of_hinges", "cuda", index=0) == "triton"


def test_an_older_gpu_runs_the_reference_and_info_gives_the_reason() -> None:
    reason = "needs compute capability 8.0, this device has 7.5"
    with gpus((7, 5)):
        assert backends.choose("max_of_hinges", "cuda") == "reference"
        assert backends.why_not("max_of_hinges", "cuda", "triton") == reason
        assert __main__.info().count(f"triton: {reason}") == 1


def test_every_device_is_chosen_for_by_its_own_capability() -> None:
    old, new = (Mock(device=torch.device("cuda", index)) for index in (0, 1))
    with gpus((7, 0), (9, 0)):
        assert backends.resolve("sigmoid", old, "auto", (8, 8)) is None
        assert backends.resolve("sigmoid", new, "auto") == backends.NAMESPACES["triton"]
        with pytest.raises(RuntimeError, match=r"triton: needs .* 8\.0, this device has 7\.0"):
            backends.resolve("sigmoid", old, "triton")


def test_amd_runs_what_the_compile_check_compiles_for_it() -> None:
    others = frozenset(backends.OPERATORS) - {"max_of_hinges", "ranks"}
    assert set(LAUNCHES) == {name for name in backends.OPERATORS if backends.triton_file(name)}
    assert set(LAUNCHES) >= _devices.NOT_ON_AMD
    with (
        gpus(amd=_devices.AMD_ARCHITECTURE),
        patch.object(_devices, "NOT_ON_AMD", others),
    ):
        for operator in backends.OPERATORS:
            compiled = operator not in others
            assert backends.choose(operator, "cuda") == ("triton" if compiled else "reference")
    with gpus(amd="gfx1100"):
        assert backends.choose("ranks", "cuda") == "reference"
        assert "compiled for AMD's gfx942 only, this device is gfx1100" in __main__.info()


def test_without_a_gpu_nothing_is_queried_or_refused() -> None:
    with (
        patch.object(_devices, "_there", lambda: False),
        patch.object(torch.cuda, "get_device_capability", Mock(side_effect=AssertionError)),
    ):
        assert _devices.why_not("triton", "sigmoid", ()) is None
        assert _devices.why_not("native", "sigmoid", ()) is None


# -- the CUDA kernels, compiled for some architectures ---------------------------------------------


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (("8.0",), (8, 0), True),
        (("8.0",), (8, 9), True),
        (("8.6",), (8, 0), False),
        (("8.0", "9.0"), (10, 0), False),
        (("8.0", "9.0+PTX"), (10, 0), True),
        (("8.0", "9.0+PTX"), (8, 9), True),
        (("9.0+PTX",), (8, 0), False),
        (("9.0a",), (9, 0), True),
        (("9.0a",), (9, 1), False),
        (("12.0",), (12, 1), True),
        (("7.5", "9.0"), (7, 5), True),
    ],
)
def test_cuda_kernels_run_where_an_image_fits(
    built: tuple[str, ...], capability: tuple[int, int], runs: bool
) -> None:
    with gpus(capability):
        reason = _devices.why_not("native", "sigmoid", built)
    have = ".".join(map(str, capability))
    told = f"compiled for compute capability {', '.join(built)}; this device has {have}"
    assert reason == (None if runs else told)


def test_an_unknown_gpu_runs_triton_and_info_gives_the_reason() -> None:
    """Up to 256 rows "auto" would take the CUDA kernel."""
    with (
        gpus((8, 9), (12, 0)),
        patch.dict(backends.NATIVE_KERNELS, cuda=frozenset({"max_of_hinges"})),
        patch.multiple(backends, NOT_BUILT="", CUDA_ARCHITECTURES=("8.0", "9.0")),
    ):
        assert backends.choose("max_of_hinges", "cuda", (128, 128), index=0) == "native"
        assert backends.choose("max_of_hinges", "cuda", (128, 128), index=1) == "triton"
        with patch.object(backends, "HAS_TRITON", False):
            assert backends.choose("max_of_hinges", "cuda", (128, 128), index=1) == "reference"
        with patch.object(torch.cuda, "current_device", lambda: 1):
            reason = "compiled for compute capability 8.0, 9.0; this device has 12.0"
            assert f"native: {reason}" in __main__.info()


def test_amd_gpus_do_not_run_cuda_kernels() -> None:
    with gpus(amd=_devices.AMD_ARCHITECTURE):
        assert _devices.why_not("native", "ranks", ("9.0",)) is not None


# -- CUDA graphs -----------------------------------------------------------------------------------


def test_ids_on_the_cpu_are_refused_while_a_graph_is_captured() -> None:
    x, ids = torch.zeros(3, 2, device="meta"), torch.arange(3)
    expected = r"text_ids is on the CPU while a CUDA graph is captured; move it with \.to\('meta'\)"
    with patch.object(_devices, "is_capturing", lambda: True):
        with pytest.raises(RuntimeError, match=expected):
            _checks.identifiers("text_ids", ids, 3, x)
        _checks.identifiers("text_ids", ids.to("meta"), 3, x)
    _checks.identifiers("text_ids", ids, 3, x)


def test_torch_reports_whether_a_graph_is_captured() -> None:
    assert not _devices.is_capturing()
    with (
        patch.object(_devices, "_there", lambda: True),
        patch.object(torch.cuda, "is_current_stream_capturing", lambda: True),
    ):
        assert _devices.is_capturing()


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
