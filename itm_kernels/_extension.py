"""Loading of the compiled extension, and the versions that decide which kernels run."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from itm_kernels import _warnings

NAME = "itm_kernels._C"
BUILD = (
    "run `ITM_KERNELS_BUILD=1 pip install --no-build-isolation .` in a checkout of itm_kernels, "
    "with torch and a C++20 compiler installed"
)


class MissingKernelsWarning(UserWarning):
    """Fused kernels are not installed, or cannot be loaded; plain PyTorch runs instead, slower.

    Each cause is warned of once per process. ``-W ignore:itm_kernels`` silences the warning, and so
    does ``warnings.filterwarnings("ignore", category=itm_kernels.backends.MissingKernelsWarning)``.
    """


class Loaded(NamedTuple):
    """The extension, or the reason why it is not used."""

    module: ModuleType | None
    reason: str = ""
    warned: bool = False  # of the reason


def warn(message: str) -> None:
    """Warn that kernels are missing."""
    _warnings.warn(f"itm_kernels: {message}", MissingKernelsWarning)


def load() -> Loaded:
    """Load the extension, and warn if one is found that cannot be used."""
    try:
        module = importlib.import_module(NAME)
        built = str(module.build_info()["torch"])
    except Exception as error:
        if find_spec(NAME) is None:
            return Loaded(None, _why_not_built())
        reason = f"the extension fails to load: {' '.join(str(error).split())}"
    else:
        # Minor releases of torch change its binary interface, patch releases do not.
        if built.split(".")[:2] == torch.__version__.split(".")[:2]:
            return Loaded(module)
        reason = f"the extension is built for torch {built}, not for {torch.__version__}"
    warn(f"{reason}. All operators run in plain PyTorch; to rebuild the extension, {BUILD}")
    return Loaded(None, reason, warned=True)


def _why_not_built() -> str:
    others = sorted(path.name for path in Path(__file__).parent.glob("_C.*.so"))
    if others:
        return f"the extension is built for another Python ({', '.join(others)})"
    return "the extension is not built"


def versions() -> dict[str, str]:
    """Return the versions that decide what runs, with empty strings for missing packages."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return ""

    return {
        "torch": torch.__version__,
        "triton": installed("triton"),
        "cuda": torch.version.cuda or "",
    }


def processor(module: ModuleType | None) -> dict[str, str | int | bool]:
    """Return the CPU's instruction set, the threads, and whether bf16 screening is on."""
    return {
        "instruction_set": (
            module.instruction_set() if module else torch.backends.cpu.get_cpu_capability()
        ),
        "threads": torch.get_num_threads(),
        "bf16_screening": bool(module and module.bf16_screening()),
    }
