"""Checks of `itm_kernels.chunked` with fully_shard."""

import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from chunk_checks import ROWS, Towers, check, expect_mean, loss, own, problem, steps
from itm_kernels import chunked


class Counted(TorchDispatchMode):
    """Counts reduce-scatters."""

    reductions = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reductions += "reduce_scatter" in str(function)
        return function(*args, **(kwargs or {}))


def shard(model: Towers) -> Towers:
    for tower in (model.image, model.text):
        fully_shard(tower)
    fully_shard(model)
    return model


@check
def fsdp2_equals_the_whole_batch() -> None:
    model, whole, image, text = problem()
    shard(model)
    image, text = image[:10], text[:10]  # 5 rows a rank: ranks need as many chunks

    def run(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        found = chunked(model, chunk_size=2, image=image, text=text)
        return found["image"], found["text"][0]

    rows, ROWS[:] = ROWS[:], [slice(0, 5), slice(5, 10)]
    try:
        steps(model, model, whole, image, text, run)
    finally:
        ROWS[:] = rows


@check
def fsdp2_reduces_after_the_last_chunk_only() -> None:
    model, _, image, text = problem()
    shard(model)
    with Counted() as counted:
        found = chunked(model, chunk_size=3, image=image, text=text)
        loss(found["image"], found["text"][0]).backward()
    assert counted.reductions == 2  # one per tower


@check
def fsdp2_gives_gradients_of_inputs() -> None:
    model, whole, image, _ = problem()
    shard(model)
    mine = image[:6].clone().requires_grad_()
    same = image[:6].clone().requires_grad_()
    chunked(model, chunk_size=4, image=mine).tanh().sum().backward()
    whole.image(same).tanh().sum().backward()
    torch.testing.assert_close(mine.grad, same.grad, rtol=1e-12, atol=1e-13)


@check
def fsdp2_rejects_autograd_grad() -> None:
    model, _, image, _ = problem()
    shard(model)
    mine = image[:6].clone().requires_grad_()
    out = chunked(model, chunk_size=4, image=mine)
    try:
        torch.autograd.grad(out.sum(), mine)
    except RuntimeError as error:
        assert "receive gradients from .backward()" in str(error), error
    else:
        raise AssertionError("autograd.grad is accepted")


@check
def fsdp2_accumulates_where_it_is_told_not_to_reduce() -> None:
    model, whole, image, text = problem()
    shard(model)
    for last, rows in ((False, slice(0, 3)), (True, slice(3, 5))):
        model.set_requires_gradient_sync(last)
        mine = [tensor[rows] for tensor in own(image, text)]
        found = chunked(model, chunk_size=2, image=mine[0], text=mine[1])
        loss(found["image"], found["text"][0]).backward()
        if not last:
            assert all(p.grad is None for p in model.parameters())
    rows = [*range(5), *range(7, 12)]
    loss(whole.image(image[rows]), whole.text(text[rows])).backward()
    expect_mean(model, whole)
