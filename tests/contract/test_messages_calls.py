"""Messages for bad input that only one function can receive."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from itm_kernels import functional as F
from itm_kernels import losses, mining, ops, synthesis

X, Y = torch.randn(4, 3), torch.randn(4, 3)
LONG = torch.arange(4)

CALLS: list[tuple[str, Callable[[], Any], type, str]] = [
    (
        "scores-square",
        lambda: losses.MaxOfHingesLoss().from_scores(torch.ones(3, 4)),
        ValueError,
        r"MaxOfHingesLoss.from_scores: scores \[3, 4\] is not square; pass image_ids and text_ids",
    ),
    (
        "scores-rank",
        lambda: losses.SumOfHingesLoss().from_scores(torch.ones(3)),
        ValueError,
        r"SumOfHingesLoss.from_scores: scores must have shape \[N, M\], got \[3\]",
    ),
    (
        "scale-tensor",
        lambda: F.info_nce_loss(X, Y, logit_scale=torch.ones(2)),
        ValueError,
        r"info_nce_loss: logit_scale must be a number or a floating-point tensor of one element",
    ),
    (
        "constraint-ids",
        lambda: F.intra_modal_constraint(X, ids=LONG[:2]),
        ValueError,
        r"intra_modal_constraint: ids must have shape \[4\]",
    ),
    (
        "views",
        lambda: F.multi_view_alignment_loss(X, Y),
        ValueError,
        r"multi_view_alignment_loss: images must have shape \[views, N, D\], got \[4, 3\]",
    ),
    (
        "views-samples",
        lambda: F.multi_view_alignment_loss(X[None], Y[None, :2]),
        ValueError,
        r"images \[1, 4, 3\] and texts \[1, 2, 3\] differ in samples",
    ),
    (
        "one-view",
        lambda: F.fusion_contrastive_loss(X[None]),
        ValueError,
        r"fusion_contrastive_loss: fused \[1, 4, 3\] must hold at least two views",
    ),
    (
        "itm-columns",
        lambda: F.itm_loss(X, LONG),
        ValueError,
        r"itm_loss: logits must be \[P\], \[P, 1\] or \[P, 2\], got \[4, 3\]",
    ),
    (
        "itm-labels",
        lambda: F.itm_loss(X[:, :2], LONG.float()),
        TypeError,
        "itm_loss: labels must be integers, got float32",
    ),
    (
        "itm-exists",
        lambda: F.itm_loss(X[:, :2], LONG % 2, exists=LONG),
        ValueError,
        r"itm_loss: exists must be bool \[4\], got int64",
    ),
    (
        "itm-smoothing",
        lambda: F.itm_loss(X[:, :2], LONG % 2, label_smoothing=1.5),
        ValueError,
        "itm_loss: label_smoothing must be finite and >= 0 and < 1, got 1.5",
    ),
    (
        "itm-match",
        lambda: losses.ITMLoss()(X, Y, lambda i, t: X[:2, 0]),
        ValueError,
        r"ITMLoss: match returned \[2\] for 12 pairs",
    ),
    (
        "itm-match-type",
        lambda: losses.ITMLoss()(X, Y, lambda i, t: None),
        TypeError,
        "ITMLoss: the result of match must be a torch.Tensor, got NoneType None",
    ),
    (
        "similarity-batch",
        lambda: ops.similarity(torch.ones(2, 3, 4), torch.ones(3, 3, 4)),
        ValueError,
        r"similarity: batch dimensions of x \[2, 3, 4\] and y \[3, 3, 4\] do not broadcast",
    ),
    (
        "band",
        lambda: ops.intra_modal_sum(X, 0.5, 0.1),
        ValueError,
        "intra_modal_sum: upper must be finite and > 0.5, got 0.1",
    ),
    (
        "kmeans-init",
        lambda: ops.kmeans(X, 2, init=Y),
        ValueError,
        r"kmeans: init \[4, 3\] must hold num_clusters = 2 rows",
    ),
    (
        "assignment",
        lambda: ops.rbf_synthesis(X, Y, LONG[:2], 2, 0.1),
        ValueError,
        r"rbf_synthesis: assignment must be integers \[4\] or \[4, 4\]",
    ),
    (
        "member-ids",
        lambda: ops.rbf_synthesis_logits(X, Y, LONG, 4, 0.1, member_ids=LONG),
        ValueError,
        "rbf_synthesis_logits: member_ids is given without anchor_ids",
    ),
    (
        "synthesis-rows",
        lambda: synthesis.HardNegativeSynthesis()(X, Y[:3]),
        ValueError,
        r"HardNegativeSynthesis: anchors \[4, 3\] and members \[3, 3\] differ in rows",
    ),
    (
        "sampler-rows",
        lambda: mining.HardNegativeSampler()(X, Y[:3]),
        ValueError,
        r"HardNegativeSampler: image \[4, 3\] and text \[3, 3\] differ in rows",
    ),
    (
        "ranks-ids",
        lambda: ops.ranks(X, Y, LONG, LONG[:2]),
        ValueError,
        r"ranks: gallery_ids must have shape \[4\]",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS]
)
def test_calls(call: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_compiled_losses_raise_the_same_messages() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(losses.MaxOfHingesLoss(), backend="aot_eager")
    with pytest.raises(ValueError, match=r"^max_of_hinges_loss: image \[4, 3\] and text \[3, 3\]"):
        compiled(X, Y[:3])


def test_errors_have_the_builtin_type_and_a_short_traceback() -> None:
    with pytest.raises(ValueError) as caught:
        losses.MaxOfHingesLoss()(X, Y[:3])
    assert caught.type is ValueError
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caught.traceback[-1].name == "run"
