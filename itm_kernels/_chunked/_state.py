"""State that an encoder reads besides its inputs: random numbers, autocast, buffers, modes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states


class State:
    """The state at the start of the forward pass, and the random state of each chunk."""

    def __init__(self, modules: Sequence[nn.Module], tensors: Sequence[Tensor]) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        examples = {t.device: t for t in (*tensors, *parameters)}
        types = {device.type for device in examples}
        self.device_type = next(iter(sorted(types - {"cpu", "meta"})), "cpu")
        # One tensor per device: get_device_states reads the state once per tensor.
        self.examples = [t for d, t in examples.items() if d.type == self.device_type]
        self.devices: list[int] = []
        self.random: list[tuple[Tensor, list[Tensor]]] = []
        self.autocast: list[dict[str, Any]] = [
            {
                "device_type": kind,
                "enabled": torch.is_autocast_enabled(kind),
                "dtype": torch.get_autocast_dtype(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in sorted({"cpu", *types})
            if torch.amp.is_autocast_available(kind)
        ]
        parts = [part for module in modules for part in module.modules()]
        self.modes = [(part, part.training) for part in dict.fromkeys(parts)]
        # Only modules in training mode update buffers. A buffer may be of several modules.
        copies: dict[Tensor, Tensor] = {}
        self.buffers: list[tuple[nn.Module, str, Tensor]] = []
        for part, training in self.modes:
            for name, buffer in part.named_buffers(recurse=False) if training else ():
                if buffer not in copies:
                    copies[buffer] = buffer.detach().clone()
                self.buffers.append((part, name, copies[buffer]))

    def save_random_state(self) -> None:
        """Save the random state for the next chunk."""
        self.devices, states = get_device_states(*self.examples)
        self.random.append((torch.get_rng_state(), states))

    def set_random_state(self, chunk: int) -> None:
        """Set the random state that a chunk had in the forward pass."""
        cpu, states = self.random[chunk]
        torch.set_rng_state(cpu)
        if self.devices:
            set_device_states(self.devices, states, device_type=self.device_type)

    def check_modes(self) -> None:
        """Raise if a module has changed between training and evaluation since the forward pass."""
        for module, training in self.modes:
            if module.training is not training:
                was, now = ("train", "eval") if training else ("eval", "train")
                raise RuntimeError(
                    f"chunked: {type(module).__name__} was in {was} mode in the forward pass and "
                    f"is in {now} mode in the backward pass, which encodes again; call backward "
                    f"before .{now}()"
                )

    @contextmanager
    def autocast_restored(self) -> Iterator[None]:
        """Run a block under the autocast of the forward pass."""
        with ExitStack() as stack:
            for options in self.autocast:
                stack.enter_context(torch.autocast(**options))
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run a block that leaves random states and buffers as they were before it.

        In the block, buffers have the values of the forward pass. Chunks that are encoded again in
        the order of the forward pass thus find the same buffers. Modules get other tensors:
        writing into the buffers would invalidate graphs that saved them.
        """
        now = [getattr(module, name) for module, name, _ in self.buffers]
        copies = {id(value): value.clone() for *_, value in self.buffers}
        with torch.random.fork_rng(self.devices, device_type=self.device_type):
            try:
                for module, name, value in self.buffers:
                    setattr(module, name, copies[id(value)])
                yield
            finally:
                for (module, name, _), value in zip(self.buffers, now, strict=True):
                    setattr(module, name, value)


@contextmanager
def hooks_muted(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Disable the hooks of leaves: they run when the sum of all chunks is accumulated."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor._backward_hooks]
    try:
        for tensor, _ in hooked:
            tensor._backward_hooks = None
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks
