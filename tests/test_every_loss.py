"""One contract for every loss and every backend."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from eager_backend import as_native
from loss_cases import BY_NAME, CASES, Case

BACKENDS = ("reference", "native")
DRAWING = ("info_cmr", "info_cmr-attached")  # draw noise, and other noise in another precision


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run on the formula, and through operators, dispatcher and autograd.Function."""
    with as_native():
        yield request.param


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def batch(
    N: int = 5, D: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return unit rows, as the encoders of these losses make them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, N, D, generator=generator, dtype=torch.float64)
    image, text = torch.nn.functional.normalize(rows, dim=-1).to(dtype)
    return image.clone().requires_grad_(), text.clone().requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


# 1: no negatives; 2: one; 33, 127: ragged against every tile size; D 1, 3, 333: no alignment.
@pytest.mark.parametrize(("N", "D"), [(1, 3), (2, 1), (33, 96), (127, 333)])
def test_value_and_gradient_equal_the_reference_in_fp64(
    case: Case, backend: str, N: int, D: int
) -> None:
    image, text = batch(N, D)
    exact = case.loss(image, text)
    for dtype, epsilon in ((torch.float64, 2**-50), (torch.float32, 2**-21)):
        x, y = (t.detach().to(dtype).requires_grad_() for t in (image, text))
        loss = case.loss(x, y, backend)
        # Rounded inputs may move a pair across a hinge or a band: compare with the formula at them.
        wide = [t.detach().double().requires_grad_() for t in (x, y)]
        exact = case.loss(*wide)
        scale = max(1.0, exact.abs().item())
        if case.name in DRAWING and dtype is torch.float32:
            continue  # other draws in another precision
        assert abs(loss.item() - exact.item()) <= 64 * epsilon * scale * max(N, D) ** 0.5
        for found, wanted in zip(gradients(loss, x, y), gradients(exact, *wide), strict=True):
            error = (found.double() - wanted).abs().max()
            size = max(1.0, wanted.abs().max().item())
            if dtype is torch.float64:
                assert error <= 1e-9 * size


# Detached synthetic vectors are constants for the gradient and no constants for differences.
@pytest.mark.parametrize("name", sorted({case.name for case in CASES} - {"info_cmr"}))
def test_gradient_is_the_derivative(name: str, backend: str) -> None:
    case = BY_NAME[name]
    # Away from kinks: no hinge or band ends within 1e-6 of a value for this seed.
    image, text = batch(4, 5, seed=3)
    assert torch.autograd.gradcheck(lambda x, y: case.loss(x, y, backend), (image, text))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(case: Case, backend: str, dtype: torch.dtype) -> None:
    image, text = batch(33, 96, dtype)
    loss = case.loss(image, text, backend)
    assert loss.dtype == torch.float32
    wide = [t.detach().float() for t in (image, text)]
    # Not a matter of rounding: the same fp32 operations on the same values.
    expected = case.loss(*wide, backend)
    if case.name not in ("multi_view", "fusion", "ito"):  # these add views before the loss
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for grad in gradients(loss, image, text):
        assert grad.dtype == dtype
        assert grad.isfinite().all()


def test_autocast_changes_nothing(case: Case, backend: str) -> None:
    image, text = batch(17, 33, torch.float32)
    plain = case.loss(image, text, backend)
    with torch.autocast("cpu", torch.bfloat16):
        inside = case.loss(image, text, backend)
    assert torch.equal(plain, inside)


def test_strides_do_not_matter(case: Case, backend: str) -> None:
    image, text = (t.detach() for t in batch(9, 7))
    plain = case.loss(image, text, backend)
    strided = torch.empty(9, 14, dtype=torch.float64)[:, ::2].copy_(image)
    transposed = text.T.contiguous().T
    torch.testing.assert_close(case.loss(strided, transposed, backend), plain)
    expanded = image[:1].expand(9, 7)
    repeated = case.loss(expanded, text, backend)
    torch.testing.assert_close(repeated, case.loss(expanded.contiguous(), text, backend))


def test_same_inputs_give_the_same_bits(case: Case, backend: str) -> None:
    image, text = batch(65, 33, torch.float32)
    first, second = (case.loss(image, text, backend) for _ in range(2))
    assert torch.equal(first, second)
    for a, b in zip(gradients(first, image, text), gradients(second, image, text), strict=True):
        assert torch.equal(a, b)


def test_inference_mode_gives_the_same_value(case: Case, backend: str) -> None:
    image, text = (t.detach() for t in batch())
    expected = case.loss(image, text, backend)
    with torch.inference_mode():
        assert torch.equal(case.loss(image, text, backend), expected)
        if (
            case.name not in ("itm", "fusion", "multi_view", "ito")
            and "constraint" not in case.name
        ):
            with pytest.raises(ValueError, match="differ in the last dimension"):
                case.loss(image, text[:, :3], backend)


def test_nan_in_any_row_shows(case: Case, backend: str) -> None:
    for side in (0, 1):
        for row in (0, 3):
            rows = [t.detach().clone() for t in batch(4, 5)]
            rows[side][row, 2] = torch.nan
            assert case.loss(*rows, backend).isnan(), f"row {row} of side {side}"


def test_one_pair_has_no_negative_and_stays_attached(case: Case, backend: str) -> None:
    image, text = batch(1, 5)
    loss = case.loss(image, text, backend)
    assert loss.isfinite()
    assert loss.requires_grad
    for grad in gradients(loss, image, text):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(case.name for case in CASES if case.takes_ids))
def test_equal_ids_leave_no_negative(name: str, backend: str) -> None:
    case = BY_NAME[name]
    image, text = batch(4, 5)
    ids = torch.full((4,), 7)
    loss = case.loss(image, text, backend, image_ids=ids, text_ids=ids)
    assert loss.isfinite()
    hinge_like = case.name.split("-")[0] in (
        "sum_of_hinges",
        "max_of_hinges",
        "semihard",
        "constraint",
        "imc",
    )
    assert not hinge_like or loss == 0
    for grad in gradients(loss, image, text):
        assert grad.isfinite().all()


def test_collapsed_embeddings_are_finite(case: Case, backend: str) -> None:
    """All rows equal: every score ties, every distance is 0."""
    row = torch.nn.functional.normalize(torch.ones(1, 6, dtype=torch.float64))
    image, text = (row.expand(5, 6).clone().requires_grad_() for _ in range(2))
    loss = case.loss(image, text, backend)
    assert loss.isfinite()
    for grad in gradients(loss, image, text):
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(case.name for case in CASES))
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


def test_exports(case: Case, backend: str) -> None:
    image, text = (t.detach() for t in batch(6, 8, torch.float32))
    exported = torch.export.export(Applied(case, backend), (image, text))
    torch.manual_seed(0)
    found = exported.module()(image, text)
    torch.testing.assert_close(found, case.loss(image, text, backend))


def test_module_prints_copies_and_keeps_its_state(case: Case) -> None:
    module = case.build("reference")
    assert "backend='reference'" in repr(module)
    image, text = (t.detach() for t in batch())
    torch.manual_seed(0)
    expected = case.apply(module, image, text)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin.load_state_dict(module.state_dict())
        torch.manual_seed(0)
        assert torch.equal(case.apply(twin, image, text), expected)


def test_backend_is_checked_at_construction(case: Case) -> None:
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'reference'.*got 'cuda'"):
        case.build("cuda")


def test_unavailable_backend_lists_every_reason(case: Case) -> None:
    with pytest.raises(RuntimeError, match=r"'triton' cannot run .* \(native: .*; triton: .*"):
        case.loss(*batch(), "triton")


@pytest.mark.parametrize(
    "name", ["sum_of_hinges", "max_of_hinges", "imc-l1", "info_nce", "sigmoid", "fusion"]
)
def test_second_derivative_of_a_fused_operator_is_refused(name: str) -> None:
    image, text = batch()
    with as_native():
        (grad, _) = torch.autograd.grad(
            BY_NAME[name].loss(image, text, "native"), (image, text), create_graph=True
        )
        with pytest.raises(RuntimeError, match='differentiable once.*backend="reference"'):
            grad.sum().backward()


@pytest.mark.parametrize("name", ["max_of_hinges", "info_nce", "imc-l1"])
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


@pytest.mark.parametrize("name", sorted(case.name for case in CASES))
def test_one_compiled_graph_serves_many_batch_sizes(name: str) -> None:
    """The last batch of an epoch is smaller: no size may be burnt into the graph."""
    case = BY_NAME[name]
    if name.startswith("info_cmr"):
        return
    module = case.build("reference")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, y: case.apply(module, x, y), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for N in (6, 9, 17):
            image, text = (t.detach() for t in batch(N, 8, torch.float32))
            torch.testing.assert_close(compiled(image, text), case.loss(image, text))
