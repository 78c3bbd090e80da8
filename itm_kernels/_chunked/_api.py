"""The public function `itm_kernels.chunked`."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

import torch

from itm_kernels import _checks
from itm_kernels._chunked._inputs import Inputs
from itm_kernels._chunked._node import Encoding
from itm_kernels._public import UnnamedTypeError, names_errors

R = TypeVar("R")


# A graph break of torch.compile. torch.compiler.disable would import the compiler with the package;
# this, like torch.optim, imports it with the first call.
@torch._disable_dynamo  # type: ignore[attr-defined]
@names_errors("chunked")
def chunked(
    encoder: Callable[..., R],
    *inputs: Any,
    chunk_size: int,
    shared: Collection[str | int] = (),
    **named_inputs: Any,
) -> R:
    """Return `encoder(*inputs, **named_inputs)`, with the activations of one chunk in memory.

    The forward pass encodes `chunk_size` rows at a time and keeps the outputs only. The backward
    pass encodes each chunk again, with the same random numbers, and propagates its rows of the
    gradient. Any loss on the outputs thus sees the whole batch. The cost is a second forward pass.

    Values and gradients are those of a loop over the same chunks: the whole batch's if the encoder
    treats rows independently. Dropout masks are drawn chunk by chunk, and batch normalisation uses
    the statistics of a chunk. Buffers are updated in the forward pass only.

    The encoder's parameters are found in the graph of the forward pass. Each gets one gradient per
    backward pass, so hooks run once and `DistributedDataParallel` reduces once, whether it is the
    encoder, is called by it, or contains the model that calls `chunked`. With `fully_shard`, the
    gradients are reduced after the last chunk, and all ranks need equal numbers of chunks.

    Args:
        encoder: a Module, or a function that calls Modules. Its outputs are a tensor `[B, ...]` or
            a tuple, list or dict of them, nested or not. What is not a tensor must be equal in all
            chunks.
        *inputs: tensors `[B, ...]`, or tuples, lists and dicts of them. Each chunk gets its rows.
            Other values and tensors without dimensions are passed whole.
        chunk_size: rows per chunk, at least 1. The last chunk may be smaller.
        shared: tensors that each chunk gets whole: names of keyword inputs or dictionary keys, or
            positions of positional inputs.
        **named_inputs: keyword inputs, like `inputs`.

    Returns:
        The outputs of the encoder for the whole batch.

    Raises:
        TypeError: encoder is not callable, or a tensor is not dense.
        ValueError: inputs differ in rows or have none to split, an output has another number of
            rows than its chunk, or outputs of two chunks differ in structure, dtype or shape.
            Also if the encoder modifies an input in place, or contains FSDP's first version.
        RuntimeError: in the backward pass, if parameters were modified or modules changed between
            training and evaluation mode since the forward pass, if the encoder's outputs
            differ from the forward pass in structure, dtype or shape, or if second derivatives
            are asked for.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
    2021, section 3.

    >>> import torch
    >>> encoder = torch.nn.Linear(8, 4)
    >>> chunked(encoder, torch.zeros(10, 8), chunk_size=4).shape
    torch.Size([10, 4])
    """
    if not callable(encoder):
        raise UnnamedTypeError(f"encoder must be callable, got {_checks.describe(encoder)}")
    _checks.integer("chunk_size", chunk_size, 1)
    given = Inputs(inputs, named_inputs, shared)
    return cast(R, Encoding(encoder, given, int(chunk_size)).forward())
