"""Sample inputs of every operator, to compare its schema and its fake kernel with a kernel."""

from typing import Any

import torch

N, M, D, K = 3, 5, 4, 2


def sample_inputs(name: str) -> list[tuple[Any, ...]]:
    """Return sample inputs of an operator by its name in the dispatcher, with and without ids."""
    torch.manual_seed(0)
    image, text = torch.randn(N, D), torch.randn(M, D)
    image_ids, text_ids = torch.arange(N), torch.tensor([2, 0, 1, 1, 0])
    square = torch.randn(N, D), torch.randn(N, D)
    positive = text_ids.clone()
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    pairs = image_ids, text_ids, positive
    logistic = image, text, scale, bias, positive, image_ids, text_ids
    ids = image_ids, text_ids
    whole = image, text, positive, *ids
    synthesis = image, text, torch.tensor([0, 1, 0, 0, 1]), image_ids, text_ids, K, 0.5
    grad, rows = torch.randn(M), torch.randn(N)
    sums = (
        rows,
        grad,
        rows.clone(),
        grad.clone(),
    )  # relative sums, and the maxima that they are relative to
    masks = torch.tensor([[2], [1], [0]]).int(), torch.tensor([[2], [5], [2], [0], [0]]).int()
    no_mask = torch.empty(0, 0, dtype=torch.int32)
    none, scores = torch.empty(0, 0), torch.randn(N, M)
    sets = torch.randn(N, 3, D), torch.randn(M, 2, D)
    counts = torch.tensor([3, 0, 1]), torch.tensor([1, 2, 2, 0, 2])
    attention = "clipped_l2norm", 9.0, "log_sum_exp", 6.0
    return {
        "similarity_forward": [(torch.randn(2, N, D), text, "cosine"), (image, text, "l1")],
        "similarity_backward": [(torch.randn(N, M), image, text, "sqeuclidean")],
        "hardest_negatives_forward": [
            (*square, None, None, None),
            (image, text, positive, image_ids, text_ids),
        ],
        "hardest_negatives_backward": [
            (grad, rows, grad, image, text, positive, torch.tensor([1, 0, -1]), text_ids)
        ],
        "max_of_hinges_forward": [
            (*square, None, None, None, 0.2, True),
            (image, text, positive, image_ids, text_ids, 0.2, False),
        ],
        "max_of_hinges_backward": [
            (grad, image, text, positive, torch.tensor([1, 0, -1, 2, 3]), text_ids)
        ],
        "max_of_hinges_total_forward": [
            (image, text, positive, image_ids, text_ids, 0.2, False, 0.5)
        ],
        "max_of_hinges_total_backward": [
            (scale, image, text, positive, torch.tensor([1, 0, -1, 2, 3]), text_ids, 0.5)
        ],
        "imc_total_forward": [
            (image, text, positive, image_ids, text_ids, 0.2, 0.05, 0.5, 0.7),
            (*square, None, None, None, 0.2, 0.05, 0.5, 0.7),
        ],
        "imc_total_backward": [
            (scale, image, text, positive, torch.tensor([1, 0, -1, 2, 3]), text_ids.clone())
            + (torch.tensor([1, 0, 2]).int(), rows, *masks, 0.7)
        ],
        "log_sum_exp_from_scores_forward": [(scores, scale, *pairs)],
        "log_sum_exp_from_scores_backward": [(rows, grad, grad, *sums, scores, scale, *pairs)],
        "sigmoid_from_scores_forward": [(scores, scale, bias, positive, *ids)],
        "sigmoid_from_scores_backward": [(grad, scores, scale, bias, positive, *ids)],
        "sum_of_hinges_from_scores_forward": [
            (scores, positive, *ids, 0.2),
            (scores[:, :N], None, None, None, 0.2),
        ],
        "sum_of_hinges_from_scores_backward": [(grad, grad, scores, positive, *ids, 0.2)],
        "max_of_hinges_from_scores_forward": [
            (scores, positive, *ids, 0.2, False),
            (scores[:, :N], None, None, None, 0.2, True),
        ],
        "max_of_hinges_from_scores_backward": [
            (grad, positive, torch.tensor([1, 0, -1, 2, 3]), text_ids, N, torch.bfloat16)
        ],
        "sum_of_hinges_forward": [
            (image, text, positive, image_ids, text_ids, 0.2, keep) for keep in (False, True)
        ],
        "sum_of_hinges_backward": [
            (grad, none, image, text, positive, image_ids, text_ids, 0.2),
            (grad, scores, image, text, positive, image_ids, text_ids, 0.2),
        ],
        "intra_modal_forward": [
            (image, image_ids, "l1", "official", 0.1, 0.9, True, False),
            (image, None, "cosine", "paper", 0.1, 0.9, False, True),
        ],
        "intra_modal_backward": [
            (rows, image, None, rows, rows - 9, rows + 9, rows.abs(), no_mask, "l2", "official")
        ],
        "log_sum_exp_forward": [
            (image, text, scale, None, None, None, False, False),
            (image, text, scale, image_ids, text_ids, positive, False, True),
        ],
        "log_sum_exp_backward": [
            (rows, grad, grad, *sums, none, image, text, scale, *pairs, False),
            (rows, grad, grad[:0].clone(), *sums, scores, image, text, scale, *[None] * 3, False),
        ],
        "sigmoid_forward": [
            (*logistic, keep, cosine) for keep, cosine in ((False, True), (True, False))
        ],
        "sigmoid_backward": [
            (grad, none, *logistic, True),
            (grad, scores, *logistic, False),
        ],
        "info_nce_total_forward": [
            (image, text, *number, positive, *ids, 0.5, cosine, not cosine)
            for number, cosine in (((scale, 0.0), True), ((None, 3.0), False))
        ],
        "info_nce_total_backward": [
            (scale, scores, torch.rand(N + M, 4), bias, *whole[:2], *number, *whole[2:], 0.5, True)
            for number in ((scale, 0.0), (None, 3.0))
        ],
        "sigmoid_total_forward": [
            (*whole[:2], scale, 0.0, None, -1.0, *whole[2:], 0.5, *flags)
            for flags in ((False, True, False), (True, False, True))
        ],
        "sigmoid_total_backward": [
            (scale, -image, -text, 2 * scale, bias, *kept, 2 * bias)
            + (*whole[:2], None, 3.0, bias, 0.0, *whole[2:], 1.0, True)
            for kept in ((scores, torch.rand(N + M, 1)), (none, torch.empty(0, 1)))
        ],
        "late_interaction_forward": [
            (*sets, None, None, True, False, False),
            (*sets, *counts, False, True, True),
        ],
        "late_interaction_backward": [
            (scores, torch.empty(0, 0, 0, dtype=torch.int16), *sets, None, None, True, False),
            (scores, torch.zeros(N, M, 2, dtype=torch.int16), *sets, *counts, False, True),
        ],
        "cross_attention_forward": [
            (*sets, None, None, *attention, False),
            (*sets, *counts, "softmax", 4.0, "mean", 5.0, True),
        ],
        "cross_attention_backward": [
            (scores, torch.empty(0, 0, 0, 0), *sets, None, None, *attention),
        ],
        "unit_rows_forward": [(image,), (torch.randn(2, N, D),)],
        "unit_rows_backward": [
            (image, text[:N], rows, dtype) for dtype in (torch.float32, torch.half)
        ],
        "cross_entropy_forward": [(grad, torch.randn(2, K, M), torch.randn(2, K, M), 0.5)],
        "cross_entropy_backward": [(grad, grad, torch.randn(2, K, M), torch.randn(2, K, M), 1.0)],
        "rbf_synthesis_forward": [(*synthesis, "kam", 1e-4, keep) for keep in (False, True)],
        "rbf_synthesis_backward": [
            (torch.randn(N, K, D), none, *synthesis, "attention", 0.0),
            (torch.randn(N, K, D), scores, *synthesis, "kam", 1e-4),
        ],
        "rbf_synthesis_logits_forward": [
            (*synthesis, "kam", 1e-4, True, keep) for keep in (False, True)
        ],
        "rbf_synthesis_logits_backward": [
            (torch.randn(N, K), none, *synthesis, "kam", 1e-4, False),
            (torch.randn(N, K), scores, *synthesis, "attention", 0.0, True),
        ],
        "info_cmr_total_forward": [
            (image, text, scale, torch.randn(2, D), torch.rand(K, N), torch.rand(K, M))
            + (positive, image_ids, text_ids, 0.0, K, 3, 0.5, "kam", 1e-4, 0.2, True),
            (*square, *[None] * 7, 3.0, 0, 3, 0.5, "attention", 1e-4, 1.0, False),
        ],
        "info_cmr_total_backward": [
            (scale, image, text, torch.randn(2, D), torch.randn(N, M + 2), torch.randn(N + 2, M))
            + (torch.rand(2, N + M), bias)
        ],
        "unit_synthesis_forward": [(*synthesis, "kam", 1e-4, keep) for keep in (False, True)],
        "unit_synthesis_backward": [
            (torch.randn(N, K), torch.rand(N, K) > 0.3, torch.randn(2, N, K))
            + (torch.zeros(2, M, 16, dtype=torch.half), rows, *synthesis, "kam", 1e-4)
        ],
        "kmeans": [
            (text, None, text[None, :K].clone(), 3),
            (text, torch.rand(N, M) > 0.3, text[:K].expand(N, K, D).clone(), 3),
        ],
        "kmeans_plus_plus": [
            (text, member, torch.rand(K, M)) for member in (None, torch.rand(N, M) > 0.3)
        ],
        "sample_negatives": [
            (image, text, image_ids, text_ids, "multinomial", 0.1, torch.tensor([5, 6]))
        ],
        **dict.fromkeys(
            ("ranks_forward", "middle_ranks"),
            [(text, image, text_ids, image_ids, torch.arange(len(image)))],
        ),
        "row_keys": [(image,)],
    }[name]
