"""A small model with its loss inside, trained for one step by the wrappers of torch.distributed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from itm_kernels import losses

LOSSES = {
    "info_nce": lambda **options: losses.InfoNCELoss(learnable=True, **options),
    "sigmoid": lambda **options: losses.SigmoidLoss(learnable=True, **options),
    "max_of_hinges": losses.MaxOfHingesLoss,
}


class Step(NamedTuple):
    """One optimiser step from one or more batches."""

    loss: str
    wrapper: str  # "ddp", "fsdp" or "all-reduce"
    batches: tuple[tuple[int, ...], ...]  # rows of every rank, for every batch
    reduction: str = "mean"
    gradients: str = "mean"
    exchange: str = "auto"


class Model(nn.Module):
    """Two encoders and a criterion, so that a wrapper sees the parameters of all three."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.text = nn.Linear(4, 5)
        self.criterion = criterion
        self.double()

    def encode(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit rows."""
        return tuple(nn.functional.normalize(x) for x in (self.image(image), self.text(text)))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the loss."""
        return self.criterion(*self.encode(image, text))


class Encoders(Model):
    """A model whose criterion is a Module of its own."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit rows."""
        return self.encode(image, text)


def inputs(rows: int, batch: int) -> tuple[Tensor, Tensor]:
    """Return the inputs of a global batch."""
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (6, 4))


def _parameters(*modules: nn.Module) -> dict[str, Tensor]:
    found = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            value = parameter.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[name.replace("module.", "").removeprefix("criterion.")] = value.clone()
    return found


def in_one_process(step: Step) -> dict[str, Tensor]:
    """Return the parameters after a step with the whole batch."""
    model = Model(LOSSES[step.loss](reduction=step.reduction))
    for index, rows in enumerate(step.batches):
        model(*inputs(sum(rows), index)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return _parameters(model)


def on_rank(group: Any, step: Step) -> dict[str, Tensor]:
    """Return the parameters after a step with this rank's rows."""
    rank = group.rank()
    options = {"group": group, "gradients": step.gradients, "exchange": step.exchange}
    criterion = LOSSES[step.loss](reduction=step.reduction, **options)
    modules = _wrapped(step.wrapper, criterion, group)
    for index, rows in enumerate(step.batches):
        first = sum(rows[:rank])
        own = slice(first, first + rows[rank])
        image, text = (x[own] for x in inputs(sum(rows), index))
        last = index == len(step.batches) - 1
        with nullcontext() if last else _without_sync(modules):
            value = (image, text)
            for module in modules:
                value = module(*value)
            value.backward()
    parameters = [p for module in modules for p in module.parameters()]
    if step.wrapper == "all-reduce":
        for parameter in parameters:
            dist.all_reduce(parameter.grad, group=group)
    torch.optim.SGD(parameters, lr=0.1).step()
    return _parameters(*modules)


def _wrapped(wrapper: str, criterion: nn.Module, group: Any) -> list[nn.Module]:
    if wrapper == "fsdp":
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (group.size(),))
        encoders = Encoders()
        fully_shard(encoders.image, mesh=mesh)
        fully_shard(encoders, mesh=mesh)
        criterion.double()
        if any(True for _ in criterion.parameters()):
            # fully_shard takes no parameter without dimensions, as a logit scale is.
            criterion = DistributedDataParallel(criterion, process_group=group)
        return [encoders, criterion]
    model = Model(criterion)
    if wrapper == "ddp":
        return [DistributedDataParallel(model, process_group=group)]
    return [model]


@contextmanager
def _without_sync(modules: list[nn.Module]) -> Iterator[None]:
    """Accumulate gradients on the rank."""
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
            elif hasattr(module, "set_requires_gradient_sync"):
                module.set_requires_gradient_sync(False)
        yield
    for module in modules:
        if hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(True)
