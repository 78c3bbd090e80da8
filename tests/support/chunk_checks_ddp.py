"""Checks of `itm_kernels.chunked` with DistributedDataParallel."""

import copy

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from chunk_checks import InChunks, check, expect_mean, loss, own, problem, steps
from itm_kernels import chunked
from itm_kernels._chunked._wrappers import modules_of


def with_ddp(**options) -> None:
    model, whole, image, text = problem(unused=options.get("find_unused_parameters", False))
    ddp = DistributedDataParallel(model, **options)

    def run(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        found = chunked(ddp, chunk_size=2, image=image, text=text)
        return found["image"], found["text"][0]

    steps(model, ddp, whole, image, text, run)


@check
def ddp_encoder() -> None:
    with_ddp()


@check
def ddp_encoder_with_unused_parameters() -> None:
    with_ddp(find_unused_parameters=True)


@check
def ddp_encoder_with_a_static_graph() -> None:
    with_ddp(static_graph=True)


@check
def ddp_encoder_with_gradients_in_buckets() -> None:
    with_ddp(gradient_as_bucket_view=True)


@check
def ddp_behind_two_functions_with_different_chunks() -> None:
    model, whole, image, text = problem()
    ddp = DistributedDataParallel(model)
    steps(
        *(model, ddp, whole, image, text),
        lambda image, text: (
            chunked(lambda x: ddp(image=x), image, chunk_size=2),
            chunked(lambda x: ddp(text=x), text, chunk_size=3),
        ),
    )


class Deep:
    """Refers to an object that refers to another, and so on."""

    def __init__(self, inner: object) -> None:
        self.inner = inner


@check
def ddp_that_is_not_found() -> None:
    """It broadcasts buffers in every chunk: ranks have equal numbers of chunks here."""
    model, whole, image, text = problem()
    ddp = DistributedDataParallel(model)
    deep = Deep(Deep(Deep(Deep(Deep(ddp)))))
    assert modules_of(lambda x: deep(x)) == []

    def run(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        found = chunked(
            lambda image, text: deep.inner.inner.inner.inner.inner(image, text),
            *(image, text),
            chunk_size=4,
        )
        return found["image"], found["text"][0]

    steps(model, ddp, whole, image, text, run)


@check
def ddp_of_each_tower_in_one_encoder() -> None:
    model, whole, image, text = problem()
    one, other = (DistributedDataParallel(tower) for tower in (model.image, model.text))
    steps(
        *(model, model, whole, image, text),
        lambda image, text: chunked(lambda x, y: (one(x), other(y)), image, text, chunk_size=3),
    )


@check
def ddp_with_a_rank_without_rows() -> None:
    model, whole, image, text = problem()
    ddp = DistributedDataParallel(model)
    rows = slice(0, 12) if dist.get_rank() == 0 else slice(0, 0)
    found = chunked(ddp, chunk_size=5, image=image[rows], text=text[rows])
    loss(found["image"], found["text"][0]).backward()
    loss(whole.image(image), whole.text(text)).backward()
    expect_mean(model, whole)


@check
def ddp_around_a_model_that_calls_chunked() -> None:
    for options in ({}, {"static_graph": True}, {"find_unused_parameters": True}):
        model, whole, image, text = problem()
        ddp = DistributedDataParallel(InChunks(model), **options)
        steps(model, ddp, whole, image, text, ddp)


@check
def ddp_reduces_once() -> None:
    model, _, image, text = problem()
    ddp = DistributedDataParallel(model)
    calls = []

    def count(_, bucket):
        calls.append(bucket.index())
        return (
            dist.all_reduce(bucket.buffer(), async_op=True)
            .get_future()
            .then(lambda future: future.value()[0] / 2)
        )

    ddp.register_comm_hook(None, count)
    found = chunked(ddp, chunk_size=2, image=image, text=text)
    assert calls == []
    loss(found["image"], found["text"][0]).backward()
    assert calls == [0]


@check
def ddp_in_no_sync_accumulates() -> None:
    model, whole, image, text = problem()
    ddp = DistributedDataParallel(model)

    def backward(rows: slice) -> None:
        mine = [tensor[rows] for tensor in (*own(image, text),)]
        found = chunked(ddp, chunk_size=2, image=mine[0], text=mine[1])
        loss(found["image"], found["text"][0]).backward()

    with ddp.no_sync():
        backward(slice(0, 3))
    backward(slice(3, None))
    loss(whole.image(image), whole.text(text)).backward()
    expect_mean(model, whole)


@check
def ddp_module_is_unchanged_by_success_and_error() -> None:
    model, _, image, _ = problem()
    ddp = DistributedDataParallel(model)
    for rows in (image, image[:, :2]):
        try:
            chunked(ddp, chunk_size=5, image=rows)
        except RuntimeError:
            pass
        assert ddp.module is model and "forward" not in ddp.__dict__
    assert set(ddp.state_dict()) == {f"module.{name}" for name in model.state_dict()}


@check
def ddp_broadcasts_buffers_as_ever() -> None:
    model, *_, image, _ = problem()
    model.image.train()
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    twin = DistributedDataParallel(copy.deepcopy(model), find_unused_parameters=True)
    for _ in range(2):
        mine = next(own(image))
        chunked(ddp, chunk_size=8, image=mine).sum().backward()
        twin(image=mine).sum().backward()
        for one, other in zip(ddp.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
