"""Errors of losses of a score matrix, and the losses that have none."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize
from torch.testing._internal.distributed.fake_pg import FakeStore

from itm_kernels import losses
from score_cases import CASES, Scored, rows


@pytest.fixture(params=CASES)
def scored(request: pytest.FixtureRequest) -> Scored:
    return CASES[request.param]


SQUARE, ROWS = torch.rand(3, 3), torch.rand(3, 2)
ERRORS: list[tuple[str, Callable[[], Any], type, str]] = [
    (
        "both-missing",
        lambda: losses.InfoCMRLoss().from_scores(SQUARE),
        ValueError,
        "InfoCMRLoss.from_scores: image= and text= must hold pooled embeddings for num_clusters "
        "= 8 and num_noise = 128; pass them, or set num_clusters = num_noise = 0 for the loss of "
        "the scores alone",
    ),
    (
        "text-missing",
        lambda: losses.InfoCMRLoss(num_noise=0).from_scores(SQUARE, image=ROWS),
        ValueError,
        "InfoCMRLoss.from_scores: text= must hold pooled embeddings for num_clusters = 8; pass "
        "them, or set num_clusters = num_noise = 0 for the loss of the scores alone",
    ),
    (
        "rows",
        lambda: losses.InfoCMRLoss().from_scores(SQUARE, image=ROWS[:2], text=ROWS),
        ValueError,
        "InfoCMRLoss.from_scores: scores [3, 3] on cpu needs image [3, D] and text [3, D] there, "
        "got float32 [2, 2] on cpu and float32 [3, 2] on cpu",
    ),
    (
        "imc-rows",
        lambda: losses.IMCLoss().from_scores(SQUARE, ROWS, ROWS[:1]),
        ValueError,
        "IMCLoss.from_scores: scores [3, 3] on cpu needs image [3, D] and text [3, D] there, "
        "got float32 [3, 2] on cpu and float32 [1, 2] on cpu",
    ),
    (
        "imc-without-rows",
        lambda: losses.IMCLoss().from_scores(SQUARE, None, ROWS),
        TypeError,
        "IMCLoss.from_scores: image must be a torch.Tensor, got NoneType None",
    ),
    (
        "square",
        lambda: losses.InfoNCELoss().from_scores(SQUARE[:2]),
        ValueError,
        "InfoNCELoss.from_scores: scores [2, 3] is not square; "
        "pass image_ids and text_ids for unequal batches",
    ),
    (
        "scale",
        lambda: losses.SigmoidLoss().from_scores(SQUARE, logit_scale=-1),
        ValueError,
        "SigmoidLoss.from_scores: logit_scale must be finite and > 0, got -1",
    ),
    (
        "bias",
        lambda: losses.SigmoidLoss().from_scores(SQUARE, logit_bias="0"),
        TypeError,
        "SigmoidLoss.from_scores: logit_bias must be a number, got str '0'",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS]
)
def test_errors(call: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.fixture
def two_ranks() -> Iterator[dist.ProcessGroup]:
    """A group of two ranks that sends nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_group_of_several_ranks_is_refused(scored: Scored, two_ranks: dist.ProcessGroup) -> None:
    image, text = rows(3, 3)
    module = scored.build(group=two_ranks)
    message = (
        f"{type(module).__name__}.from_scores: a score matrix is that of a whole batch, and group "
        "spreads the batch over 2 ranks; set group = None for the loss of the given matrix"
    )
    with pytest.raises(ValueError) as raised:
        scored.apply(module, image @ text.T, image, text)
    assert str(raised.value) == message
    module.group = None
    assert scored.apply(module, image @ text.T, image, text).isfinite()


def test_views_and_fused_vectors_have_no_score_matrix() -> None:
    """Each pair of views has its own, and fused vectors compare pairs with pairs."""
    for name in ("MultiViewAlignmentLoss", "FusionContrastiveLoss", "ITOLoss", "ITMLoss"):
        assert not hasattr(getattr(losses, name), "from_scores")
    views = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    images, texts = torch.rand(2, 2, 4, 7, dtype=torch.float64)
    views = normalize(images, dim=-1)[:, None] @ normalize(texts, dim=-1).mT
    each = [losses.InfoNCELoss().from_scores(s) for row in views for s in row]
    expected = losses.MultiViewAlignmentLoss()(images, texts)
    torch.testing.assert_close(torch.stack(each).mean(), expected)
