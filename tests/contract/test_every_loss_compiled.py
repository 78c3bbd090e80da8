"""The part of every loss's contract that is about graphs: compile, export, fake tensors."""

import pytest
import torch
from torch import Tensor

from graphs import of_each_graph
from loss_cases import BY_NAME, CASES, Case, batch, gradients

pytestmark = pytest.mark.compiles
FAMILIES = ["max_of_hinges", "info_nce", "imc-l1"]


@pytest.mark.parametrize("name", sorted(case.name for case in CASES))
@of_each_graph
def test_compiles_into_one_graph(name: str, backend: str) -> None:
    case = BY_NAME[name]
    image, text = batch(6, 8, torch.float32)
    expected = case.loss(image, text, backend)
    wanted = gradients(expected, image, text)
    module = case.build(backend)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: case.apply(module, x, y), fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(0)
    loss = compiled(image, text)
    torch.testing.assert_close(loss, expected)
    for found, grad in zip(gradients(loss, image, text), wanted, strict=True):
        torch.testing.assert_close(found, grad)


@pytest.mark.parametrize("name", sorted(case.name for case in CASES if case.takes_ids))
@of_each_graph
@pytest.mark.usefixtures("two_steps")
def test_compiles_with_ids(name: str, backend: str) -> None:
    case = BY_NAME[name]
    image, text = batch(6, 8, torch.float32)
    ids = torch.tensor([3, 1, 1, 0, 2, 2])
    expected = case.loss(image, text, backend, image_ids=ids, text_ids=ids)
    module = case.build(backend)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y, i: case.apply(module, x, y, image_ids=i, text_ids=i),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(image, text, ids), expected)


@pytest.mark.usefixtures("two_steps")
def test_fake_tensors_flow_through(case: Case, backend: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        image, text = (
            mode.from_tensor(t.detach()).requires_grad_() for t in batch(6, 8, torch.float32)
        )
        loss = case.loss(image, text, backend)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert gradients(loss, image, text)[0].shape == (6, 8)


class Applied(torch.nn.Module):
    """A loss as a Module of two tensors, which is what torch.export takes."""

    def __init__(self, case: Case, backend: str) -> None:
        super().__init__()
        self.criterion = case.build(backend)
        self.apply_loss = case.apply

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.apply_loss(self.criterion, image, text)


@pytest.mark.usefixtures("two_steps")
def test_exports(case: Case, backend: str) -> None:
    image, text = (t.detach() for t in batch(6, 8, torch.float32))
    exported = torch.export.export(Applied(case, backend), (image, text))
    torch.manual_seed(0)
    found = exported.module()(image, text)
    torch.testing.assert_close(found, case.loss(image, text, backend))


@pytest.mark.parametrize("name", FAMILIES)
@of_each_graph
def test_inductor_gives_the_eager_value(name: str, backend: str) -> None:
    """The default compiler, once per family: it takes seconds a graph."""
    case = BY_NAME[name]
    image, text = batch(6, 8, torch.float32)
    module = case.build(backend)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: case.apply(module, x, y), fullgraph=True)
    loss = compiled(image, text)
    expected = case.loss(image, text, backend)
    torch.testing.assert_close(loss, expected)
    for found, grad in zip(
        gradients(loss, image, text), gradients(expected, image, text), strict=True
    ):
        torch.testing.assert_close(found, grad)


@pytest.mark.parametrize(
    ("name", "dynamic"),
    # dynamic=True also takes D and options as symbols, and traces floats twice.
    [
        *((name, None) for name in sorted(case.name for case in CASES)),
        *((name, True) for name in FAMILIES),
    ],
)
@pytest.mark.usefixtures("two_steps")
def test_one_compiled_graph_serves_many_batch_sizes(name: str, dynamic: bool | None) -> None:
    """The last batch of an epoch is smaller: no size may be a constant of the graph."""
    case = BY_NAME[name]
    module = case.build("reference")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: case.apply(module, x, y), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for N in (6, 9, 17):
            image, text = (t.detach() for t in batch(N, 8, torch.float32))
            for rows in (image, text):
                torch._dynamo.mark_dynamic(rows, 0)  # an error if the graph needs this size
            expected = case.loss(image, text)
            torch.manual_seed(0)
            torch.testing.assert_close(compiled(image, text), expected)
