"""Encode chunk by chunk; encode each chunk again in the backward pass.

The forward pass runs with gradients enabled, and drops the graph of each chunk. The graph shows on
which parameters the outputs depend, for any callable. Kernels are also those of the backward pass:
without gradients PyTorch may choose others, with other rounding and other dropout masks.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

from itm_kernels._chunked._inputs import Inputs
from itm_kernels._chunked._outputs import Outputs
from itm_kernels._chunked._state import State, hooks_muted
from itm_kernels._chunked._wrappers import Wrappers, modules_of
from itm_kernels._describe import shape
from itm_kernels._public import UnnamedValueError


class Encoding:
    """One forward pass of an encoder over a batch, and what its backward pass needs.

    It holds no output: the autograd node refers to it, and outputs refer to the node.
    """

    def __init__(self, encoder: Callable[..., Any], inputs: Inputs, chunk_size: int) -> None:
        self.encoder = encoder
        self.inputs = inputs
        # An empty batch is one empty chunk: its outputs have shapes, too.
        starts = range(0, max(inputs.rows, 1), chunk_size)
        self.bounds = [(start, min(start + chunk_size, inputs.rows)) for start in starts]
        self.modules = modules_of(encoder)
        self.wrappers = Wrappers(self.modules)
        self.structure: TreeSpec | None = None
        self.places: list[int] = []  # of differentiable outputs among all outputs
        self.leaves: dict[int, Tensor] = {}  # parameters that the outputs depend on, by id
        self.versions: list[int] = []

    def forward(self) -> Any:
        """Return the outputs of the batch."""
        outputs = Outputs(self.inputs.rows)
        attached = self.wrappers.around(partial(self._forward, outputs))
        for place, value in zip(self.places, attached, strict=True):
            outputs.values[place] = value
        return outputs.whole()

    def _forward(self, outputs: Outputs) -> list[Tensor]:
        """Encode all chunks; return the differentiable outputs, attached to one node."""
        tensors, self.inputs.tensors = self.inputs.tensors, []
        enabled = torch.is_grad_enabled()
        # FSDP gathers parameters into leaves of its own, and orders its work by forward passes
        # with gradients: it runs without.
        graph = enabled and not self.wrappers.sharded
        if enabled:
            self.state = State(self.modules, tensors)
        before = [None if t.is_inference() else t._version for t in tensors]
        differentiable: set[int] = set()
        with self.wrappers.unwrapped(), torch.set_grad_enabled(graph):
            for start, stop in self.bounds:
                if enabled:
                    self.state.save_random_state()
                differentiable |= self._encode(outputs, tensors, start, stop, graph)
        if enabled and not graph:
            torch.clear_autocast_cache()  # of casts of parameters that have no graph
            differentiable = self._without_graph(outputs, tensors)
        if not differentiable:
            return []
        if any(old not in (None, t._version) for old, t in zip(before, tensors, strict=True)):
            raise UnnamedValueError(
                "encoder modifies an input in place, and would again in the backward pass; make "
                "it work on a copy"
            )
        self.places = sorted(differentiable)
        self.structure = outputs.structure
        self.versions = [leaf._version for leaf in self.leaves.values()]
        values = [outputs.values[place] for place in self.places]
        leaves = self.leaves.values()
        return list(_Encode.apply(self, values, len(tensors), *tensors, *leaves))

    def _encode(
        self, outputs: Outputs, tensors: Sequence[Tensor], start: int, stop: int, graph: bool
    ) -> set[int]:
        """Encode a chunk; return which outputs are differentiable. Its graph ends with the call."""
        args, kwargs, parts = self.inputs.chunk(tensors, start, stop, leaves=graph)
        values = outputs.write(self.encoder(*args, **kwargs), start, stop)
        found = {i: v for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad}
        self.leaves |= _leaves(found.values())
        for part in parts:
            self.leaves.pop(id(part), None)
        return set(found)

    def _without_graph(self, outputs: Outputs, tensors: Sequence[Tensor]) -> set[int]:
        """Return the differentiable outputs of an FSDP encoder: all, if anything needs them."""
        parameters = (p for module in self.modules for p in module.parameters())
        if not any(tensor.requires_grad for tensor in (*tensors, *parameters)):
            return set()
        placeholder = torch.empty(0, requires_grad=True)  # for the parameters
        self.leaves = {id(placeholder): placeholder}
        return {
            i
            for i, value in enumerate(outputs.values)
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        }

    def backward(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Any]:
        """Return the gradients of the input tensors and of the leaves."""
        self._check_unmodified()
        self.state.check_modes()
        of_inputs = [_Rows(t) if s else _Sum() for t, s in self._splits(tensors)]
        of_leaves = [_Sum() for _ in self.leaves]
        with (
            self.state.restored(),
            hooks_muted(list(self.leaves.values())),
            self.wrappers.unwrapped(),
            self.wrappers.reduced_after_last() as set_last,
        ):
            for chunk, (start, stop) in enumerate(self.bounds):
                self.state.set_random_state(chunk)
                set_last(chunk + 1 == len(self.bounds))
                found = self._differentiate(tensors, grads, start, stop)
                for total, grad in zip([*of_inputs, *of_leaves], found, strict=True):
                    if grad is not None:
                        total.add(grad, start, stop)
        return [total.value for total in (*of_inputs, *of_leaves)]

    def _splits(self, tensors: Sequence[Tensor]) -> Iterable[tuple[Tensor, bool]]:
        return zip(tensors, self.inputs.is_split, strict=True)

    def _differentiate(
        self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None], start: int, stop: int
    ) -> list[Tensor | None]:
        """Encode a chunk again; return the gradients of its parts of the inputs and of leaves."""
        args, kwargs, parts = self.inputs.chunk(tensors, start, stop, leaves=True)
        with torch.enable_grad(), self.state.autocast_restored():
            values, structure = tree_flatten(self.encoder(*args, **kwargs))
        if structure != self.structure:
            raise RuntimeError(
                "chunked: encoder returned other containers in the backward pass than in the "
                "forward pass; it must do the same computation in both"
            )
        outputs, upstream = [], []
        for place, grad in zip(self.places, grads, strict=True):
            if grad is None:
                continue
            part, value = grad[start:stop], values[place]
            if value.shape != part.shape or value.dtype != part.dtype:
                raise RuntimeError(
                    f"chunked: output {place} of encoder has shape {shape(value.shape)} and dtype "
                    f"{value.dtype} in the backward pass, {shape(part.shape)} and {part.dtype} in "
                    "the forward pass; it must do the same computation in both"
                )
            if value.requires_grad:
                outputs.append(value)
                upstream.append(part)
        sharded = self.wrappers.sharded
        sources = [*parts, *(() if sharded else self.leaves.values())]
        wanted = [source for source in sources if source.requires_grad]
        found: dict[int, Tensor | None] = {}
        if outputs and sharded:
            torch.autograd.backward(outputs, upstream)
            found = {id(part): part.grad for part in parts}
        elif outputs and wanted:
            found = dict(zip(map(id, wanted), _gradients(outputs, wanted, upstream), strict=True))
        return [found.get(id(source)) for source in (*parts, *self.leaves.values())]

    def _check_unmodified(self) -> None:
        if self.wrappers.sharded and not torch.autograd._is_checkpoint_valid():
            raise RuntimeError(
                "chunked: parameters of fully_shard receive gradients from .backward() without "
                "inputs=; torch.autograd.grad and .backward(inputs=...) do not reach them"
            )
        for leaf, version in zip(self.leaves.values(), self.versions, strict=True):
            if leaf._version != version:
                raise RuntimeError(
                    f"chunked: a parameter {shape(leaf.shape)} was modified in place after the "
                    "forward pass, and the backward pass encodes again; call backward before "
                    "optimizer.step()"
                )


def _gradients(
    outputs: Sequence[Tensor], wanted: Sequence[Tensor], upstream: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(outputs, wanted, upstream, allow_unused=True)
    except RuntimeError as error:
        if "through the graph a second time" not in str(error):
            raise
        raise RuntimeError(
            "chunked: encoder uses a tensor that was computed outside of it with gradients; pass "
            "it as an input, named in shared= if it has no batch dimension"
        ) from error


class _Encode(torch.autograd.Function):
    """The autograd node: inputs and parameters in, outputs of the batch out."""

    @staticmethod
    def forward(
        ctx: Any, encoding: Encoding, outputs: list[Tensor], inputs: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Attach outputs to the node; the first tensors are inputs, the others parameters."""
        ctx.encoding = encoding
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:inputs])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Encode and differentiate chunk by chunk."""
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise RuntimeError(
                "chunked: second derivatives (create_graph=True) are not supported; call encoder "
                "on the whole batch"
            )
        return (None, None, None, *ctx.encoding.backward(tensors, grads))


class _Sum:
    """The gradient of a tensor that every chunk uses."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.is_owned = False

    def add(self, grad: Tensor, start: int, stop: int) -> None:
        """Add the gradient of a chunk."""
        if self.value is None:
            self.value = grad
        elif self.is_owned and self.value.layout == grad.layout:
            self.value += grad
        else:  # autograd may return one tensor as the gradients of two leaves: leave it unchanged
            self.value = grad + self.value if self.value.is_sparse else self.value + grad
            self.is_owned = True


class _Rows:
    """The gradient of a tensor of which each chunk uses its rows."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.value: Tensor | None = None

    def add(self, grad: Tensor, start: int, stop: int) -> None:
        """Write the gradient of a chunk."""
        if self.value is None:
            self.value = torch.zeros_like(self.tensor)
        self.value[start:stop].copy_(grad)


def _leaves(outputs: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return the leaves of the graphs of outputs, by id."""
    found: dict[int, Tensor] = {}
    near: list[Any] = []
    for output in outputs:
        if output.grad_fn is None:
            found[id(output)] = output
        else:
            near.append(output.grad_fn)
    seen = set(near)
    while near:
        for node, _ in near.pop().next_functions:
            if node is None or node in seen:
                continue
            seen.add(node)
            if type(node).__name__ == "AccumulateGrad":
                found[id(node.variable)] = node.variable
            else:
                near.append(node)
    return found
