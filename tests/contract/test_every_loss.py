"""One contract for every loss and every backend."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from eager_backend import as_native
from interpreted import beyond_finite
from itm_kernels import backends
from loss_cases import BY_NAME, CASES, Case, batch, gradients, is_the_derivative

DRAWING = ("info_cmr", "info_cmr-attached")  # draw noise, and other noise in another precision
# Results that are compared with fp64 results of the same draws.
PRECISIONS = [
    pytest.param(case, dtype, id=f"{case.name}-{str(dtype)[6:]}")
    for case in CASES
    for dtype in (torch.float64, torch.float32)
    if dtype == torch.float64 or case.name not in DRAWING
]


# 1: no negatives; 2: one; 33, 127: ragged against every tile size; D 1, 3, 333: no alignment.
@pytest.mark.parametrize(("N", "D"), [(1, 3), (2, 1), (33, 96), (127, 333)])
@pytest.mark.parametrize(("case", "dtype"), PRECISIONS)
def test_error_is_at_most_twice_the_references(
    case: Case, backend: str, N: int, D: int, dtype: torch.dtype
) -> None:
    inputs = [t.detach().to(dtype).requires_grad_() for t in batch(N, D)]
    wide = [t.detach().double().requires_grad_() for t in inputs]

    def results(rows: list[Tensor], backend: str) -> list[Tensor]:
        loss = case.loss(*rows, backend)
        return [t.detach().double() for t in (loss, *gradients(loss, *rows))]

    exact, eager, found = (
        results(rows, name)
        for rows, name in ((wide, "reference"), (inputs, "reference"), (inputs, backend))
    )
    for wanted, theirs, ours in zip(exact, eager, found, strict=True):
        size = max(1.0, wanted.abs().max().item())
        allowed = 2 * (theirs - wanted).abs().max() + 64 * torch.finfo(dtype).eps * size
        assert (ours - wanted).abs().max() <= allowed


# Detached synthetic vectors are constants for the gradient and no constants for differences.
@pytest.mark.parametrize("name", sorted({case.name for case in CASES} - {"info_cmr"}))
def test_gradient_is_the_derivative(name: str, backend: str) -> None:
    case = BY_NAME[name]
    # Away from kinks: no hinge or band ends within 1e-6 of a value for this seed.
    image, text = batch(4, 5, seed=3)
    assert is_the_derivative(lambda x, y: case.loss(x, y, backend), (image, text))


@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges", "info_nce", "sigmoid"])
def test_every_text_has_a_value_with_a_gradient_of_its_own(name: str, backend: str) -> None:
    """Without reduction, a caller's weight of a pair affects the gradient of that pair only."""
    found = []
    for of, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        image, text = (t.detach().to(dtype).requires_grad_() for t in batch(37, 24))
        module = BY_NAME[name].build(of)
        module.reduction = "none"
        values = module(image, text)
        share = torch.linspace(-1, 2, len(text), dtype=dtype)
        found.append([values, *gradients((share * values).sum(), image, text)])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(case: Case, backend: str, dtype: torch.dtype) -> None:
    image, text = batch(33, 96, dtype)
    loss = case.loss(image, text, backend)
    assert loss.dtype == torch.float32
    wide = [t.detach().float() for t in (image, text)]
    # No rounding is involved: the same fp32 operations on the same values.
    expected = case.loss(*wide, backend)
    if case.name not in ("multi_view", "fusion", "ito"):  # these add views before the loss
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for grad in gradients(loss, image, text):
        assert grad.dtype == dtype
        assert grad.isfinite().all()


def test_autocast_changes_nothing(case: Case, backend: str) -> None:
    image, text = batch(17, 33, torch.float32)
    plain = case.loss(image, text, backend)
    with torch.autocast(image.device.type, torch.bfloat16):
        inside = case.loss(image, text, backend)
    assert torch.equal(plain, inside)


def test_meta_tensors_flow_through(case: Case) -> None:
    image, text = (t.to("meta").detach().requires_grad_() for t in batch(6, 8, torch.float32))
    loss = case.loss(image, text, "auto")
    assert loss.is_meta
    assert gradients(loss, image, text)[0].shape == (6, 8)


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


@beyond_finite
# 2 pairs: one negative each, so that nothing else shows what is not a number.
@pytest.mark.parametrize("N", [2, 4])
def test_where_the_loss_is_nan_its_gradient_is(case: Case, backend: str, N: int) -> None:
    """A GradScaler would take a step of NaN with a finite gradient."""
    values = [(torch.inf, 0), (-torch.inf, 1), (torch.nan, 1), (1e200, 0)]
    if backends.INTERPRETED:  # k-means takes seconds there: one each
        values = values[N // 2 - 1 : N // 2]
    for value, side in values:
        rows = [t.detach().clone() for t in batch(N, 5)]
        rows[side][1, 2] = value
        if value == 1e200:  # finite rows whose products are not: inf - inf
            rows = [t * torch.tensor([1, 1, 1, -1, -1]) * 1e155 for t in rows]
        image, text = (t.requires_grad_() for t in rows)
        loss = case.loss(image, text, backend)
        if loss.isnan():
            shown = [grad.isnan().any() for grad in gradients(loss, image, text)]
            assert any(shown), f"{value} in side {side}"


# Those that normalise inside.
COSINES = ("info_cmr", "info_nce", "sigmoid", "multi_view", "fusion", "ito")
COSINES += ("constraint-paper-cosine", "constraint-repel-cosine")


def test_a_zero_row_has_no_gradient(case: Case, backend: str) -> None:
    """Its gradient, 1e12 times the upstream one, is infinite in fp16: no step is taken."""
    rows = [t.detach() for t in batch(6, 8, torch.float16)]
    for side in rows:
        side[2] = 0
    image, text = (t.requires_grad_() for t in rows)
    for grad in gradients(case.loss(image, text, backend), image, text):
        assert grad.isfinite().all()
        if case.name.removesuffix("-attached") in COSINES:
            assert grad[2].count_nonzero() == 0


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


def test_unavailable_backend_lists_every_reason(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "HAS_TRITON", False)
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
