"""Transforms of torch.func: "auto" runs plain PyTorch in them, a named backend raises."""

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

from eager_backend import as_native
from itm_kernels import functional, ops
from loss_cases import BY_NAME, Case, batch, gradients


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_grad_is_the_gradient(case: Case, backend: str) -> None:
    image, text = batch(4, 5)
    with as_native():
        (wanted, _) = gradients(case.loss(image, text, backend), image, text)
        found = grad(lambda x: case.loss(x, text.detach(), backend))(image.detach())
    torch.testing.assert_close(found, wanted)


# Losses that torch can differentiate forward and twice: no l1, which is its cdist.
@pytest.mark.parametrize("name", ["max_of_hinges", "imc", "info_nce", "sigmoid", "fusion"])
def test_other_transforms(name: str) -> None:
    image, text = (t.detach() for t in batch(3, 4))

    def loss(x: torch.Tensor) -> torch.Tensor:
        return BY_NAME[name].loss(x, text, "auto")

    both = torch.stack([image, image.flip(0)])
    with as_native():
        wanted = torch.stack([loss(x) for x in both])
        torch.testing.assert_close(vmap(loss)(both), wanted)
        slope = grad(loss)(image)
        torch.testing.assert_close(jacrev(loss)(image), slope)
        torch.testing.assert_close(jvp(loss, (image,), (image,))[1], (slope * image).sum())
        assert hessian(loss)(image).shape == (3, 4, 3, 4)


def test_the_error_names_backends_that_support_transforms(case: Case) -> None:
    image, text = (t.detach() for t in batch())
    with (
        as_native(),
        pytest.raises(
            RuntimeError,
            match=r"'native' cannot run inside a transform of torch.func .*backend=\"reference\"",
        ),
    ):
        grad(lambda x: case.loss(x, text, "native"))(image)


def test_operators_too() -> None:
    x = batch()[0].detach()
    with as_native():
        found = grad(lambda t: ops.similarity(t, x, "l1").sum())(x)
        wanted = grad(lambda t: ops.similarity(t, x, "l1", backend="reference").sum())(x)
        with pytest.raises(RuntimeError, match="^similarity: backend 'native' cannot run inside"):
            grad(lambda t: ops.similarity(t, x, backend="native").sum())(x)
    torch.testing.assert_close(found, wanted)


def test_a_compiled_transform_is_one_graph() -> None:
    image, text = (t.detach() for t in batch())

    def slope(x: torch.Tensor) -> torch.Tensor:
        return grad(lambda t: functional.max_of_hinges_loss(t, text))(x)

    compiled = torch.compile(slope, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), slope(image))
