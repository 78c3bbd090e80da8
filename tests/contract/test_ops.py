"""Operators: schemas and fakes against real kernels, and the public functions over them."""

from types import FunctionType, ModuleType

import pytest
import torch
from torch import Tensor

import eager_backend
from itm_kernels import ops, reference
from itm_kernels.ops import _define
from loss_cases import is_the_derivative
from operator_inputs import sample_inputs


@pytest.mark.parametrize("part", [ops, reference], ids=["ops", "reference"])
def test_public_names_are_functions_and_result_types(part: ModuleType) -> None:
    names = [name for name in vars(part) if not name.startswith("_")]
    assert sorted(names) == sorted(part.__all__)
    for name in names:
        value = getattr(part, name)
        result = isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields")
        assert isinstance(value, FunctionType) or (part is ops and result), name


@pytest.mark.parametrize("name", [definition.name for definition in _define.DEFINITIONS])
def test_schema_and_fake_describe_the_kernel(name: str) -> None:
    operator = getattr(getattr(torch.ops, eager_backend.NAMESPACE), name).default
    for inputs in sample_inputs(name):
        torch.library.opcheck(operator, inputs)


@pytest.mark.parametrize("name", [definition.name for definition in _define.DEFINITIONS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fake_gives_the_kernels_dtypes(name: str, dtype: torch.dtype) -> None:
    if "backward" in name:
        dtype = torch.float64  # gradients come in the kernel's own precisions
    operator = getattr(getattr(torch.ops, eager_backend.NAMESPACE), name)
    for inputs in sample_inputs(name):
        cast = [
            x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
        ]
        meta = [x.to("meta") if isinstance(x, Tensor) else x for x in cast]
        real, fake = operator(*cast), operator(*meta)
        real, fake = ([t] if isinstance(t, Tensor) else t for t in (real, fake))
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]


def rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(torch.get_default_device()).requires_grad_()


@pytest.mark.parametrize("metric", ["dot", "cosine", "l1", "l2", "sqeuclidean"])
def test_similarity_is_the_metric_pair_by_pair(metric: str, backend: str) -> None:
    x, y = rows(2, 3, 4, 7), rows(3, 5, 7, seed=1)
    found = ops.similarity(x, y, metric, backend=backend)
    assert found.shape == (2, 3, 4, 5)
    single = {
        "dot": lambda a, b: (a * b).sum(),
        "cosine": lambda a, b: (a * b).sum() / (a.norm() * b.norm()),
        "l1": lambda a, b: (a - b).abs().sum(),
        "l2": lambda a, b: (a - b).square().sum().sqrt(),
        "sqeuclidean": lambda a, b: (a - b).square().sum(),
    }[metric]
    for b in range(2):
        for c in range(3):
            for n in range(4):
                for m in range(5):
                    torch.testing.assert_close(found[b, c, n, m], single(x[b, c, n], y[c, m]))
    # Every entry is perturbed: the least that broadcasts batches and is not square.
    few = rows(2, 1, 2, 2), rows(2, 3, 2, seed=1)
    assert is_the_derivative(lambda x, y: ops.similarity(x, y, metric, backend=backend), few)


@pytest.mark.parametrize("metric", ["l1", "l2", "sqeuclidean"])
def test_distances_do_not_cancel(metric: str) -> None:
    """Near rows far from the origin: |x|^2 + |y|^2 - 2xy would leave no digit in fp32."""
    x = torch.full((2, 8), 1e3, requires_grad=True)
    y = x.detach() + torch.tensor([[1e-2], [0.0]])
    found = ops.similarity(x, y, metric)
    exact = ops.similarity(x.double(), y.double(), metric)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    assert (ops.similarity(x, x, metric).diagonal() == 0).all()
    (grad,) = torch.autograd.grad(ops.similarity(x, x, metric).sum(), x)
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_similarity_accumulates_half_precision_in_fp32(dtype: torch.dtype) -> None:
    # 4096 products of 1/16: a sum in fp16 or bf16 would stop growing.
    x = torch.full((1, 4096), 0.25, dtype=dtype)
    assert ops.similarity(x, x, "dot").item() == 256
    assert ops.similarity(x, x, "dot").dtype == dtype


def test_hardest_negatives_are_differentiable_scores(backend: str) -> None:
    # Multiples of 1/64: every sum of their products is exact, in any order.
    image, text = (
        rows(size, 4, seed=seed).detach().mul(64).round().div(64).requires_grad_()
        for size, seed in ((3, 0), (5, 1))
    )
    ids = {"image_ids": torch.tensor([7, 8, 9]), "text_ids": torch.tensor([8, 8, 7, 9, 9])}

    def scores(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = ops.hardest_negatives(image, text, backend=backend, **ids)
        return found.positive, found.text_score, found.image_score

    assert is_the_derivative(scores, (image, text))
    found = ops.hardest_negatives(image, text, backend=backend, **ids)
    products = image @ text.T
    for i in range(3):
        assert found.text_score[i] == products[i, found.text_index[i]]
        assert ids["text_ids"][found.text_index[i]] != ids["image_ids"][i]
    for j in range(5):
        assert found.image_score[j] == products[found.image_index[j], j]


def test_ties_go_to_the_lowest_index_with_the_whole_gradient(backend: str) -> None:
    image, text = torch.eye(4, requires_grad=True), torch.ones(4, 4, requires_grad=True)
    found = ops.hardest_negatives(image, text, backend=backend)
    assert found.text_index.tolist() == [1, 0, 0, 0]
    assert found.image_index.tolist() == [1, 0, 0, 0]
    (grad,) = torch.autograd.grad(found.text_score.sum(), text)
    assert grad.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_log_sum_exp_leaves_out_pairs_that_share_an_id(backend: str) -> None:
    x, y, scale = rows(2, 3), rows(3, 3, seed=1), torch.tensor(2.0, dtype=torch.float64)
    ids = {"x_ids": torch.tensor([1, 2]), "y_ids": torch.tensor([1, 2, 1])}
    found = ops.log_sum_exp(x, y, scale, backend=backend, **ids)
    s = 2 * (x @ y.T)
    torch.testing.assert_close(found.row, torch.stack([s[0, 1], s[1, [0, 2]].logsumexp(0)]))
    torch.testing.assert_close(found.column, torch.stack([s[1, 0], s[0, 1], s[1, 2]]))
    none = ops.log_sum_exp(x, y, scale, x_ids=torch.ones(2).long(), y_ids=torch.ones(3).long())
    assert (none.row == -torch.inf).all()
    scale = scale.clone().requires_grad_()
    assert is_the_derivative(
        lambda x, y, scale: ops.log_sum_exp(x, y, scale, backend=backend, **ids), (x, y, scale)
    )


def test_kmeans_finds_separated_groups_and_keeps_empty_clusters(backend: str) -> None:
    centres = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, 0.0]])
    x = centres.repeat(4, 1) + 0.1 * rows(12, 2).detach().float()
    generator = torch.Generator(x.device).manual_seed(1)
    found = ops.kmeans(x, 3, generator=generator, backend=backend)
    assert (found.assignment.view(4, 3) == found.assignment[:3]).all()
    assert len(set(found.assignment[:3].tolist())) == 3
    again = ops.kmeans(x, 3, generator=generator.manual_seed(1), backend=backend)
    assert torch.equal(found.assignment, again.assignment)
    assert torch.equal(found.centroids, again.centroids)
    far = torch.tensor([[9.0, 1.0], [500.0, 500.0]])
    assert torch.equal(ops.kmeans(x[:1], 2, init=far, backend=backend).centroids[1], far[1])


def test_kmeans_takes_more_clusters_than_rows(backend: str) -> None:
    x = torch.eye(3)
    found = ops.kmeans(x, 7, backend=backend)
    assert sorted(found.assignment.tolist()) == sorted(set(found.assignment.tolist()))
    assert torch.equal(found.centroids[found.assignment], x)


def test_rbf_synthesis_of_far_members_is_no_zero_over_zero() -> None:
    """sigma .1, opposite vectors: e^-200 is 0 in fp32, the softmax is not."""
    q, x = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-0.8, 0.6]])
    found = ops.rbf_synthesis(q, x, torch.zeros(2).long(), 1, 0.1, weights="attention")
    torch.testing.assert_close(found.vectors[0, 0], x[1])


def test_duplicates_without_ridge_give_nan_and_no_error() -> None:
    x = torch.ones(2, 3)
    found = ops.rbf_synthesis(x, x, torch.zeros(2).long(), 1, 0.5, ridge=0.0)
    assert found.vectors.isnan().all()


@pytest.mark.parametrize("weights", ["kam", "attention"])
@pytest.mark.parametrize("per_anchor", [False, True])
def test_rbf_synthesis_gradients(weights: str, per_anchor: bool, backend: str) -> None:
    q, x = rows(3, 4), rows(6, 4, seed=1)
    assignment = torch.tensor([0, 1, 0, 1, 0, 2])
    if per_anchor:
        assignment = torch.stack([assignment, assignment.roll(1), assignment.roll(2)])
        assignment[0, 3] = -1
    options = {
        "weights": weights,
        "anchor_ids": torch.tensor([0, 1, 2]),
        "member_ids": torch.tensor([0, 0, 1, 1, 2, 2]),
        "backend": backend,
    }
    assert is_the_derivative(
        lambda q, x: ops.rbf_synthesis(q, x, assignment, 4, 0.8, **options).vectors, (q, x)
    )
    assert is_the_derivative(
        lambda q, x: ops.rbf_synthesis_logits(q, x, assignment, 4, 0.8, **options).cosine, (q, x)
    )
    vectors, valid = ops.rbf_synthesis(q, x, assignment, 4, 0.8, **options)
    assert not valid[:, 3].any()
    assert (vectors[~valid] == 0).all()
    cosine = torch.nn.functional.cosine_similarity(q[:, None], vectors, dim=-1)
    logits = ops.rbf_synthesis_logits(q, x, assignment, 4, 0.8, **options)
    torch.testing.assert_close(logits.cosine, cosine)
