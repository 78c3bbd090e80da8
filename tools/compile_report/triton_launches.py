"""Launch the Triton kernels of every operator on meta tensors, with all options."""

from collections.abc import Callable

import torch
from torch import Tensor


def rows(N: int, D: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((N, D), dtype=dtype, device="meta")


def inputs(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rows(N, D, dtype), rows(N, D, dtype)


def ids(N: int) -> Tensor:
    return torch.empty(N, dtype=torch.int64, device="meta")


def values(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def all_pairs(N: int) -> tuple[tuple[Tensor | None, ...], ...]:
    """Return (positive, image_ids, text_ids), without ids and with them."""
    return (None, None, None), (ids(N), ids(N), ids(N))


def max_of_hinges(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import max_of_hinges as kernels

    image, text = inputs(N, D, dtype)
    for pairs in all_pairs(N):
        for semihard in (False, True):
            kernels.max_of_hinges_forward(image, text, *pairs, 0.2, semihard)
    for positive in (None, ids(N)):
        kernels.max_of_hinges_backward(values(N), image, text, positive, ids(N), ids(N))


def hardest_negatives(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import hardest_negatives as kernels

    image, text = inputs(N, D, dtype)
    for pairs in all_pairs(N):
        kernels.hardest_negatives_forward(image, text, *pairs)
        found = ids(N), ids(N)
        kernels.hardest_negatives_backward(*[values(N)] * 3, image, text, pairs[0], *found)


def log_sum_exp(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import log_sum_exp as kernels

    x, y, sums, scale = *inputs(N, D, dtype), values(N), values()
    for pair in ((None,) * 3, (ids(N), ids(N), None), (ids(N), ids(N), ids(N))):
        for cosine in (True, False):
            kernels.log_sum_exp_forward(x, y, scale, *pair, cosine, False)
            given = [sums] * 7
            kernels.log_sum_exp_backward(*given, values(0, 0), x, y, scale, *pair, cosine)


def log_sum_exp_from_scores(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import log_sum_exp_from_scores as kernels

    scores, sums, scale = rows(N, N, dtype), values(N), values()
    # A transposed matrix too: the loads of a row are then not contiguous.
    for given in (scores, scores.T):
        kernels.log_sum_exp_from_scores_forward(given, scale, ids(N), ids(N), ids(N))
        inputs = given, scale, ids(N), ids(N), ids(N)
        kernels.log_sum_exp_from_scores_backward(*[sums] * 7, *inputs)


def sigmoid(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sigmoid as kernels

    image, text = inputs(N, D, dtype)
    without, with_ids = all_pairs(N)
    # Dot products are cosines without factors, and a value alone is a value without weights. Both
    # need fewer registers, so one precision suffices.
    dots = ((without, False),) if dtype == torch.bfloat16 else ()
    for pairs, cosine in ((without, True), (with_ids, True), *dots):
        arguments = image, text, values(), values(), *pairs
        given = image, text, values(), 0.0, values(), 0.0, *pairs, 1.0, cosine
        _, *parts = kernels.sigmoid_total_forward(*given, True, False)
        kernels.sigmoid_total_backward(values(), *parts, *given)
        if pairs is with_ids:
            kernels.sigmoid_forward(*arguments, False, cosine)
            kernels.sigmoid_backward(values(N), values(0, 0), *arguments, cosine)
            if dtype == torch.bfloat16:
                kernels.sigmoid_total_forward(*given, False, False)


def sigmoid_from_scores(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sigmoid_from_scores as kernels

    scores = rows(N, N, dtype)
    for given in (scores, scores.T):
        for pairs in all_pairs(N):
            inputs = given, values(), values(), *pairs
            kernels.sigmoid_from_scores_forward(*inputs)
            kernels.sigmoid_from_scores_backward(values(N), *inputs)


def sum_of_hinges(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sum_of_hinges as kernels

    for pairs in all_pairs(N):
        arguments = *inputs(N, D, dtype), *pairs, 0.2
        kernels.sum_of_hinges_forward(*arguments, False)
        for grad in (values(N), values().expand(N)):
            kernels.sum_of_hinges_backward(grad, values(0, 0), *arguments)


def max_of_hinges_from_scores(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import max_of_hinges_from_scores as kernels

    scores = rows(N, N, dtype)
    for given in (scores, scores.T):
        for pairs in all_pairs(N):
            for semihard in (False, True):
                kernels.max_of_hinges_from_scores_forward(given, *pairs, 0.2, semihard)
    grad = values(N).to(torch.promote_types(dtype, torch.float32))
    for positive in (None, ids(N)):
        kernels.max_of_hinges_from_scores_backward(grad, positive, ids(N), ids(N), N, dtype)


def sum_of_hinges_from_scores(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sum_of_hinges_from_scores as kernels

    scores = rows(N, N, dtype)
    for given in (scores, scores.T):
        for pairs in all_pairs(N):
            loss = kernels.sum_of_hinges_from_scores_forward(given, *pairs, 0.2)
            kernels.sum_of_hinges_from_scores_backward(loss, loss, given, *pairs, 0.2)


def similarity(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import similarity as kernels

    x, y = inputs(N, D, dtype)
    grad = torch.empty((N, N), dtype=dtype, device="meta")
    for metric in ("dot", "cosine", "l1", "l2", "sqeuclidean"):
        kernels.similarity_forward(x, y, metric)
        kernels.similarity_backward(grad, x, y, metric)


def intra_modal(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import intra_modal as kernels

    x = rows(N, D, dtype)
    for metric in ("cosine", "l1", "l2"):
        for own, mode in ((None, "official"), (ids(N), "repel")):
            keep = mode == "repel" or metric == "cosine"
            found = kernels.intra_modal_forward(x, own, metric, mode, 0.1, 0.9, True, keep)
            kernels.intra_modal_backward(values(N), x, own, *found, metric, mode)


def sample_negatives(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import sample_negatives as kernels

    seed = torch.empty(2, dtype=torch.int64, device="meta")
    for pair in ((None, None), (ids(N), ids(N))):
        for strategy in ("multinomial", "uniform", "hardest"):
            kernels.sample_negatives(*inputs(N, D, dtype), *pair, strategy, 0.07, seed)


def ranks(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import ranks as kernels
    from itm_kernels.triton.row_keys import row_keys

    queries, gallery = inputs(N, D, dtype)
    # Also more rows than are sorted by counting.
    for many in (gallery, gallery[:1].expand(9000, D)):
        keys = row_keys(many)
        kernels.ranks_forward(queries, many, ids(N), ids(len(many)), keys)


def rbf_synthesis(N: int, D: int, dtype: torch.dtype, logits: bool = False) -> None:
    from itm_kernels.triton import rbf_synthesis as kernels

    K, anchors = 4, rows(N, D, dtype)
    # The factors of kam are as large as [M, M]: with M = N they would hide an [N, M] allocation.
    for weights, M in (("attention", N), ("kam", min(N, 200))):
        # A shared clustering, and one per anchor except where its assignment dominates the memory.
        for assignment in (ids(M), ids(M).expand(N, M))[: 1 if N > 4096 else 2]:
            known = (ids(N), ids(M)) if weights == "kam" else (None, None)
            inputs = anchors, rows(M, D, dtype), assignment, *known, K, 0.5, weights, 1e-4
            if logits:
                _, _, none = kernels.rbf_synthesis_logits_forward(*inputs, False, False)
                kernels.rbf_synthesis_logits_backward(values(N, K), none, *inputs, False)
            else:
                _, _, none = kernels.rbf_synthesis_forward(*inputs, False)
                kernels.rbf_synthesis_backward(values(N, K, D), none, *inputs)


def rbf_synthesis_logits(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import _cluster_batches, _kam_solve, unit_synthesis

    rbf_synthesis(N, D, dtype, logits=True)
    for weights, M in (("attention", N), ("kam", min(N, 200))):
        inputs = *(rows(n, D, dtype) for n in (N, M)), ids(M), ids(N), ids(M), 4, 0.5, weights, 1e-4
        _, *kept = unit_synthesis.unit_synthesis_forward(*inputs, True)
        unit_synthesis.unit_synthesis_backward(values(N, 4), *kept, *inputs)
    if dtype == torch.float32 and N <= 4096:  # a batch of clusters, whose sizes are on the host
        M, starts = 200, torch.empty((1, 5), dtype=torch.int32, device="meta")
        part = _cluster_batches.ClusterBatch(0, M, _cluster_batches.factor_size(M, 4), M, 1)
        found = _kam_solve.factorize(rows(M, D, dtype), starts, None, 0.5, 1e-4, part)
        found.solve(rows(M, D, dtype)[None], rows(M, D, dtype)[None])


def kmeans(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import kmeans as kernels

    # Many rows use a separate tile; large batches are summed in parts, small ones are not.
    for M, K in ((1 << 14 if N == 4096 else N, 200), (N, 100), (N, 8), (min(N, 70), 100)):
        kernels.kmeans(rows(M, D, dtype), None, values(1, K, D), 1)
    x = rows(N, D, dtype)
    member = torch.empty((3, N), dtype=torch.bool, device="meta")
    kernels.kmeans(x, member, values(3, 5, D), 1)


def kmeans_plus_plus(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import kmeans_plus_plus as kernels

    x, draws = rows(N, D, dtype), values(3, N)
    for member in (None, torch.empty((40, N), dtype=torch.bool, device="meta")):
        kernels.kmeans_plus_plus(x, member, draws)


def unit_rows(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import unit_rows as kernels

    x = rows(N, D, dtype)
    for side in (x, x.mT.contiguous().mT):
        found = kernels.unit_rows_forward(side)
        kernels.unit_rows_backward(side.to(found[0].dtype), *found, dtype)


def cross_entropy(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import cross_entropy as kernels

    like = torch.promote_types(dtype, torch.float32)
    positive, negatives = rows(N, 1, like)[:, 0], torch.empty((2, 3, N), dtype=like, device="meta")
    for sums in (negatives, negatives[:, :1]):
        kernels.cross_entropy_forward(positive, sums, sums, 0.5)
        kernels.cross_entropy_backward(positive, positive, sums, sums, 0.5)


def sets(N: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return sets of 36 regions and of 20 words, of N rows or a few more; of one row for N = 1."""
    C, Q = (36, 20) if N > 1 else (1, 1)
    shapes = (-(-N // C), C, D), (-(-N // Q), Q, D)
    context, query = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    return context, query


def late_interaction(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import late_interaction as kernels

    context, query = sets(N, D, dtype)
    for counts, flag in (((None, None), False), ((ids(len(context)), ids(len(query))), True)):
        given = context, query, *counts, flag, flag
        scores, winners = kernels.late_interaction_forward(*given, flag)
        kernels.late_interaction_backward(scores, winners, *given)


def cross_attention(N: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import cross_attention as kernels

    context, query = sets(N, D, dtype)
    counts = ids(len(context)), ids(len(query))
    options = [
        *(((None, None), "clipped_l2norm", "log_sum_exp"), (counts, "softmax", "max")),
        *((counts, "clipped", "mean"), (counts, "l2norm", "log_sum_exp")),
    ]
    for own, feature_norm, aggregate in options:
        given = context, query, *own, feature_norm, 9.0, aggregate, 6.0
        scores, products = kernels.cross_attention_forward(*given, False)
        kernels.cross_attention_backward(scores, products, *given)


LAUNCHES: dict[str, Callable[[int, int, torch.dtype], None]] = {
    "max_of_hinges": max_of_hinges,
    "hardest_negatives": hardest_negatives,
    "log_sum_exp": log_sum_exp,
    "log_sum_exp_from_scores": log_sum_exp_from_scores,
    "sigmoid": sigmoid,
    "sigmoid_from_scores": sigmoid_from_scores,
    "sum_of_hinges": sum_of_hinges,
    "max_of_hinges_from_scores": max_of_hinges_from_scores,
    "sum_of_hinges_from_scores": sum_of_hinges_from_scores,
    "similarity": similarity,
    "intra_modal": intra_modal,
    "sample_negatives": sample_negatives,
    "ranks": ranks,
    "rbf_synthesis": rbf_synthesis,
    "rbf_synthesis_logits": rbf_synthesis_logits,
    "kmeans": kmeans,
    "kmeans_plus_plus": kmeans_plus_plus,
    "unit_rows": unit_rows,
    "cross_entropy": cross_entropy,
    "late_interaction": late_interaction,
    "cross_attention": cross_attention,
}
