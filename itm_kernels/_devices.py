"""Which GPUs the Triton kernels run on."""

import functools

import torch

# Asynchronous copies, tf32 and bf16 on tensor cores.
LEAST_CAPABILITY = (8, 0)
# The compile check (tests/triton_offline.py) compiles these operators, and no others, for AMD.
AMD_ARCHITECTURE = "gfx942"
AMD_OPERATORS = frozenset(
    {
        *("similarity", "hardest_negatives", "max_of_hinges", "sum_of_hinges", "intra_modal"),
        *("log_sum_exp", "sigmoid", "rbf_synthesis", "rbf_synthesis_logits", "kmeans"),
        *("kmeans_plus_plus", "sample_negatives", "ranks", "unit_rows", "cross_entropy"),
    }
)


def why_no_triton(operator: str, index: int | None = None) -> str | None:
    """Return why a GPU cannot run an operator's Triton kernels, None if it can.

    Args:
        operator: what is to run.
        index: of the device; None for the current one.

    Without a GPU nothing is asked, and nothing is refused: tensors of the device are fake there.
    """
    if not _there():
        return None
    device = torch.cuda.current_device() if index is None else index
    if torch.version.hip is not None:
        return _why_not_on_amd(operator, _amd_architecture(device))
    found = _capability(device)
    if found >= LEAST_CAPABILITY:
        return None
    least, have = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
    return f"needs compute capability {least}, this device has {have}"


# What torch.compiler.assume_constant_result does, which would import torch._dynamo.
why_no_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _there() -> bool:
    return torch.cuda.is_available()


def _why_not_on_amd(operator: str, architecture: str) -> str | None:
    if architecture != AMD_ARCHITECTURE:
        return f"compiled for AMD's {AMD_ARCHITECTURE} only, this device is {architecture}"
    if operator not in AMD_OPERATORS:
        return f"no triton kernel for {operator} on AMD GPUs"
    return None


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _amd_architecture(device: int) -> str:
    return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
