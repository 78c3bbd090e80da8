"""The GPUs that the kernels support."""

import functools

import torch

# The first with asynchronous copies and with tf32 and bf16 on tensor cores.
LEAST_CAPABILITY = (8, 0)
# `tools.compile_report.triton_kernels` compiles all operators for this architecture but these.
AMD_ARCHITECTURE = "gfx942"
NOT_ON_AMD: frozenset[str] = frozenset()


def why_not(
    backend: str, operator: str, architectures: tuple[str, ...], index: int | None = None
) -> str | None:
    """Return why a GPU cannot run an operator's kernels of a backend, None if it can.

    Args:
        backend: "native" or "triton".
        operator: its name.
        architectures: of the native kernels, as in TORCH_CUDA_ARCH_LIST: "9.0" runs on 9.0 and
            later minor versions, "9.0a" on 9.0 only, and "9.0+PTX" also on every later version.
        index: of the device; None for the current one.

    Without a GPU the result is None: tensors of the device are then fake.
    """
    if not _there():
        return None
    device = torch.cuda.current_device() if index is None else index
    if torch.version.hip is not None:
        return _why_not_on_amd(backend, operator, _amd_architecture(device))
    found = _capability(device)
    # Called for every operator of a loss: nothing is formatted or parsed for a GPU that runs it.
    if found >= LEAST_CAPABILITY if backend == "triton" else _any_runs(architectures, found):
        return None
    have = f"this device has {found[0]}.{found[1]}"
    if backend == "triton":
        least = ".".join(map(str, LEAST_CAPABILITY))
        return f"needs compute capability {least}, {have}"
    return f"compiled for compute capability {', '.join(architectures)}; {have}"


# As torch.compiler.assume_constant_result does, which would import torch._dynamo.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured from the current stream."""
    if torch.compiler.is_compiling() or not _there():
        return False
    return torch.cuda.is_current_stream_capturing()


@functools.cache
def _any_runs(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    return any(_runs(architecture, capability) for architecture in architectures)


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    number, _, ptx = architecture.partition("+")
    major, minor = number.rstrip("abcdefghijklmnopqrstuvwxyz").split(".")
    compiled = int(major), int(minor)
    if number[-1].isalpha():
        return capability == compiled
    return compiled <= capability and (bool(ptx) or compiled[0] == capability[0])


def _there() -> bool:
    # The latter counts the devices at every call.
    return torch.cuda.is_initialized() or torch.cuda.is_available()


def _why_not_on_amd(backend: str, operator: str, architecture: str) -> str | None:
    if backend == "native":
        return "the CUDA kernels do not run on AMD GPUs"
    if architecture != AMD_ARCHITECTURE:
        return f"compiled for AMD's {AMD_ARCHITECTURE} only, this device is {architecture}"
    if operator in NOT_ON_AMD:
        return f"no triton kernel for {operator} on AMD GPUs"
    return None


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _amd_architecture(device: int) -> str:
    return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
