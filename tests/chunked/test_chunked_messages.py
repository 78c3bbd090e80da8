"""Invalid calls of `chunked`, and silent errors of others, raise and name values and remedy."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chunk_loops import perceptron, rows
from itm_kernels import chunked


class Words(dict[str, Any]):
    """Stands for the batch of a tokeniser: a mapping that PyTorch does not know."""


def raises(kind: type[Exception], message: str) -> Any:
    return pytest.raises(kind, match=f"^chunked: {message}")


def test_encoder_that_is_not_callable() -> None:
    with raises(TypeError, "encoder must be callable, got float64"):
        chunked(rows(), rows(), chunk_size=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -3])
def test_chunk_size_too_small(size: int) -> None:
    with raises(ValueError, f"chunk_size must be >= 1, got {size}"):
        chunked(perceptron(), rows(), chunk_size=size)


@pytest.mark.parametrize("size", [2.0, "4", True, None])
def test_chunk_size_of_another_type(size: Any) -> None:
    with raises(TypeError, "chunk_size must be an int"):
        chunked(perceptron(), rows(), chunk_size=size)


def test_inputs_of_different_rows() -> None:
    message = r"input 0 \[10, 6\] and mask\['deep'\]\[0\] \[7, 6\] differ in rows; name .* shared="
    with raises(ValueError, message):
        chunked(perceptron(), rows(), mask={"deep": [rows(7)]}, chunk_size=4)


def test_no_input_to_split() -> None:
    for args in ((), (3, "word", torch.tensor(1.0))):
        with raises(ValueError, "no input can be split; pass at least one tensor"):
            chunked(perceptron(), *args, chunk_size=4)
    with raises(ValueError, "no input can be split"):
        chunked(perceptron(), rows(), chunk_size=4, shared=(0,))


@pytest.mark.parametrize("name", ["mask", 1, 2.5])
def test_shared_name_that_no_input_has(name: Any) -> None:
    with raises(ValueError, "shared names .*, which is no keyword input, dictionary key or"):
        chunked(perceptron(), rows(), chunk_size=4, shared=(name,))


@pytest.mark.parametrize("shared", ["mask", 0, None])
def test_shared_is_a_collection(shared: Any) -> None:
    with raises(TypeError, r"shared must be a collection .* like \('mask',\)"):
        chunked(perceptron(), rows(), chunk_size=4, shared=shared)


def test_containers_that_would_be_passed_whole() -> None:
    with raises(TypeError, "tokens is a UserDict, which is not split; pass a dict of it"):
        chunked(perceptron(), rows(), tokens=UserDict(ids=rows()), chunk_size=4)
    with raises(TypeError, "input 1 is a Words, which is not split"):
        chunked(perceptron(), rows(), Words(ids=rows()), chunk_size=4)


def test_tensors_that_are_not_dense() -> None:
    with raises(TypeError, "input 1 must be a dense tensor"):
        chunked(perceptron(), rows(), torch.eye(10).to_sparse(), chunk_size=4)


@pytest.mark.parametrize(
    "encoder, shape",
    [
        (lambda x: x.sum(), r"\[\]"),
        (lambda x: x.sum(0), r"\[6\]"),
        (lambda x: x.repeat(2, 1), r"\[8, 6\]"),
        (lambda x: x[:-1], r"\[3, 6\]"),
    ],
)
def test_output_without_a_row_per_input_row(encoder: Any, shape: str) -> None:
    with raises(ValueError, rf"output 0 has shape {shape} for a chunk of 4 rows; every output"):
        chunked(encoder, rows(), chunk_size=4)


def test_output_that_has_rows_in_the_first_chunk_only() -> None:
    with raises(ValueError, r"output 0 has shape \[4, 6\] for a chunk of 2 rows"):
        chunked(lambda x: x.new_ones(4, 6), rows(), chunk_size=4)


def test_outputs_of_two_chunks_differ() -> None:
    calls: list[int] = []

    def alternate(first: Any, second: Any) -> Any:
        calls.clear()
        return lambda x: (calls.append(1), first(x) if len(calls) == 1 else second(x))[1]

    with raises(ValueError, r"output 0 of two chunks differs, float64 \[6\] per row and .* pad it"):
        chunked(alternate(lambda x: x, lambda x: x[:, :3]), rows(), chunk_size=4)
    with raises(ValueError, r"output 0 of two chunks differs, float64 \[6\] .* and float32"):
        chunked(alternate(lambda x: x, lambda x: x.float()), rows(), chunk_size=4)
    with raises(ValueError, "outputs of two chunks differ in structure"):
        chunked(alternate(lambda x: x, lambda x: (x,)), rows(), chunk_size=4)
    with raises(ValueError, "output 1 is 4 in one chunk and 2 in another; what is not a tensor"):
        chunked(lambda x: (x, x.shape[0]), rows(), chunk_size=4)
    with raises(ValueError, "output 0 is ndarray .* and ndarray .* in another"):
        chunked(lambda x: np.ones(3), rows(), chunk_size=4)


def test_parameter_modified_before_backward() -> None:
    encoder, x = perceptron(), rows()
    out = chunked(encoder, x, chunk_size=4)
    with torch.no_grad():
        encoder[3].weight.mul_(2)
    with raises(RuntimeError, r"a parameter \[8, 8\] was modified in place after the forward"):
        out.sum().backward()


def test_input_modified_before_backward() -> None:
    x = rows(grad=False)
    out = chunked(perceptron(), x, chunk_size=4)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_encoder_that_modifies_its_input() -> None:
    encoder, x = perceptron(), rows(grad=False)
    with raises(ValueError, "encoder modifies an input in place, .* make it work on a copy"):
        chunked(lambda x: encoder(x.mul_(2)), x, chunk_size=4)
    with torch.no_grad():
        chunked(lambda x: encoder(x.mul_(2)), x, chunk_size=4)


def test_mode_changed_before_backward() -> None:
    encoder = perceptron(dropout=0.5)
    out = chunked(lambda x: encoder(x), rows(), chunk_size=4)
    encoder.eval()
    with raises(RuntimeError, "Sequential was in train mode .* is in eval mode .* before .eval"):
        out.sum().backward()


def test_encoder_that_does_something_else_in_backward() -> None:
    encoder, x, changed = perceptron(), rows(), []

    def run(part: Tensor) -> Any:
        out = encoder(part)
        return changed[0](out) if changed else out

    for change, message in (
        (lambda out: (out,), "encoder returned other containers in the backward pass"),
        (lambda out: out[:, :2], r"output 0 .* shape \[4, 2\] and dtype torch.float64 in the"),
        (lambda out: out.float(), r"output 0 .* dtype torch.float32 in the backward pass"),
    ):
        changed.clear()
        out = chunked(run, x, chunk_size=4)
        changed.append(change)
        with raises(RuntimeError, message):
            out.sum().backward()


def test_second_derivatives() -> None:
    out = chunked(perceptron(), x := rows(), chunk_size=4)
    with raises(RuntimeError, r"second derivatives \(create_graph=True\) are not supported; call"):
        torch.autograd.grad(out.sum(), x, create_graph=True)


def test_tensor_computed_outside_with_gradients() -> None:
    encoder, x = perceptron(), rows()
    prompt = nn.Linear(6, 6).double()(rows(1)).exp()
    out = chunked(lambda x: encoder(x * prompt), x, chunk_size=4)
    with raises(RuntimeError, "encoder uses a tensor that was computed outside .* shared="):
        out.sum().backward()
    out = chunked(
        lambda x, prompt: encoder(x * prompt), x, prompt.detach(), chunk_size=4, shared=[1]
    )
    out.sum().backward()


def test_reentrant_checkpoint_inside_the_encoder() -> None:
    encoder, x = perceptron(), rows()
    out = chunked(lambda x: checkpoint(encoder, x, use_reentrant=True), x, chunk_size=4)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        out.sum().backward()


class FullyShardedDataParallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._fsdp_wrapped_module = perceptron()


def test_first_version_of_fsdp() -> None:
    with raises(ValueError, "encoder contains a FullyShardedDataParallel, .* use .*fully_shard"):
        chunked(FullyShardedDataParallel(), rows(), chunk_size=4)
