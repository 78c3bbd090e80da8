"""Losses that subclass open_clip's: distillation, captioning, and those that replace a method."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rivals import UnavailableError
from benchmarks.rivals.packages import load_open_clip
from compat_formulas import clip_loss, siglip_loss
from itm_kernels.compat.open_clip import ClipLoss, SigLipLoss
from oracles.batches import unit_pair
from oracles.comparing import same

SCALE = torch.tensor(7.5, dtype=torch.float64)
BIAS = torch.tensor(-3.0, dtype=torch.float64)


def features(size: int = 5) -> tuple[Tensor, Tensor]:
    return unit_pair(size, torch.float64)


def test_logits_and_labels_are_the_originals() -> None:
    image, text = features()
    per_image, per_text = ClipLoss().get_logits(image, text, SCALE)
    torch.testing.assert_close(per_image, SCALE * image @ text.T)
    torch.testing.assert_close(per_text, per_image.T)
    # Neither is a view of the other: code may write into one of them.
    assert per_image.data_ptr() != per_text.data_ptr() and per_text.is_contiguous()
    biased = ClipLoss().get_logits(image, text, SCALE, logit_bias=BIAS)
    for found, plain in zip(biased, (per_image, per_text), strict=True):
        torch.testing.assert_close(found, plain + BIAS)
    assert ClipLoss().get_ground_truth(torch.device("cpu"), 3).tolist() == [0, 1, 2]

    torch.testing.assert_close(SigLipLoss().get_logits(image, text[:2], SCALE), per_image[:, :2])
    like = torch.device("cpu"), torch.float64, 3
    signs = SigLipLoss().get_ground_truth(*like)
    assert signs.dtype == torch.float64
    assert signs.tolist() == (2 * torch.eye(3) - 1).tolist()
    assert (SigLipLoss().get_ground_truth(*like, negative_only=True) == -1).all()


def test_labels_are_kept_for_one_number_of_logits() -> None:
    device = torch.device("cpu")
    loss = ClipLoss(cache_labels=True)
    labels = loss.get_ground_truth(device, 4)
    assert loss.get_ground_truth(device, 4) is labels
    assert loss.labels == {device: labels} and loss.prev_num_logits == 4
    assert loss.get_ground_truth(device, 3).tolist() == [0, 1, 2]
    assert loss.prev_num_logits == 3
    free = ClipLoss()
    assert free.get_ground_truth(device, 4) is not free.get_ground_truth(device, 4)
    assert free.labels == {}


def test_labels_that_are_set_are_used() -> None:
    image, text = features()
    order = torch.tensor([1, 0, 3, 2, 4])
    loss = ClipLoss()
    loss.labels, loss.prev_num_logits = {torch.device("cpu"): order}, 5
    same(lambda i, t: loss(i, t, SCALE), lambda i, t: clip_loss(i, t[order], SCALE), image, text)


class Distillation(ClipLoss):
    """A student's logits against a teacher's, next to the contrastive loss."""

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, *teacher: Tensor) -> Tensor:
        student = self.get_logits(image, text, scale)
        targets = self.get_logits(*teacher)
        labels = self.get_ground_truth(image.device, student[0].shape[0])
        hard = sum(cross_entropy(logits, labels) for logits in student) / 2
        soft = sum(
            cross_entropy(logits, target.softmax(1))
            for logits, target in zip(student, targets, strict=True)
        )
        return hard + soft / 2


@pytest.mark.parametrize("cache_labels", [False, True])
def test_a_distillation_loss_runs_on_the_drop_in(cache_labels: bool) -> None:
    image, text = features()
    teacher = [x.detach() for x in features(5)[::-1]]

    def wanted(image: Tensor, text: Tensor) -> Tensor:
        logits, targets = SCALE * image @ text.T, SCALE * teacher[0] @ teacher[1].T
        soft = [
            cross_entropy(a, b.softmax(1)) for a, b in ((logits, targets), (logits.T, targets.T))
        ]
        return clip_loss(image, text, SCALE) + sum(soft) / 2

    loss = Distillation(cache_labels=cache_labels)
    same(lambda i, t: loss(i, t, SCALE, *teacher, SCALE), wanted, image, text)
    same(lambda i, t: loss(i, t, SCALE, *teacher, SCALE), wanted, image, text)


class Captioning(ClipLoss):
    """A second loss with a Module of its own, next to the inherited forward."""

    def __init__(self, weight: float, **options: bool) -> None:
        super().__init__(**options)
        self.weight = weight
        self.captions = nn.CrossEntropyLoss(ignore_index=0)

    def forward(self, image: Tensor, text: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return super().forward(image, text, SCALE) + self.weight * self.captions(logits, labels)


def test_a_captioning_loss_runs_on_the_drop_in() -> None:
    image, text = features()
    words, labels = torch.randn(4, 7, dtype=torch.float64), torch.tensor([1, 2, 0, 3])
    loss = Captioning(0.5, local_loss=True, cache_labels=True, use_horovod=False)
    captions = 0.5 * cross_entropy(words, labels, ignore_index=0)
    same(
        lambda i, t: loss(i, t, words, labels),
        lambda i, t: clip_loss(i, t, SCALE) + captions,
        image,
        text,
    )


class OwnLogits(ClipLoss):
    def get_logits(self, image, text, scale, logit_bias=None):  # type: ignore[no-untyped-def]
        logits = -scale * torch.cdist(image, text)
        return logits, logits.T


class OwnLabels(ClipLoss):
    def get_ground_truth(self, device, num_logits):  # type: ignore[no-untyped-def]
        return torch.arange(num_logits, device=device).roll(1)


class OwnSigmoidLogits(SigLipLoss):
    def get_logits(self, image, text, scale, logit_bias=None):  # type: ignore[no-untyped-def]
        return super().get_logits(image, text, 2 * scale, logit_bias)


class OwnSigns(SigLipLoss):
    def get_ground_truth(self, device, dtype, num_logits, negative_only=False):  # type: ignore[no-untyped-def]
        signs = super().get_ground_truth(device, dtype, num_logits, negative_only)
        return signs.roll(1, 0)


def test_methods_of_a_subclass_are_used_by_the_inherited_forward() -> None:
    image, text = features()

    def by_distance(image: Tensor, text: Tensor) -> Tensor:
        logits, labels = -SCALE * torch.cdist(image, text), torch.arange(5)
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    def rolled(image: Tensor, text: Tensor) -> Tensor:
        logits, labels = SCALE * image @ text.T, torch.arange(5).roll(1)
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    same(lambda i, t: OwnLogits()(i, t, SCALE), by_distance, image, text)
    same(lambda i, t: OwnLabels()(i, t, SCALE), rolled, image, text)
    same(
        lambda i, t: OwnSigmoidLogits()(i, t, SCALE, BIAS),
        lambda i, t: siglip_loss(i, t, 2 * SCALE, BIAS),
        image,
        text,
    )
    same(
        lambda i, t: OwnSigns()(i, t, SCALE, BIAS),
        lambda i, t: siglip_loss(i.roll(-1, 0), t, SCALE, BIAS),
        image,
        text,
    )
    patched = ClipLoss()
    patched.get_logits = OwnLogits().get_logits  # type: ignore[method-assign]
    same(lambda i, t: patched(i, t, SCALE), by_distance, image, text)


def block_of_pairs(image: Tensor, text: Tensor, negative_only: bool) -> Tensor:
    """Pairs of a block of images and a block of texts, of which the diagonal may be positive."""
    logits = SCALE * image @ text.T + BIAS
    signs = torch.full_like(logits, -1)
    if not negative_only:
        signs.fill_diagonal_(1)
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(image)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("chunk_size", [0, 1, 3, 64])
@pytest.mark.parametrize("rows, columns", [(7, 7), (7, 4), (4, 7)])
@pytest.mark.parametrize("negative_only", [False, True])
def test_blocks_in_chunks(
    backend: str, chunk_size: int, rows: int, columns: int, negative_only: bool
) -> None:
    image, text = (x.detach() for x in features(7))
    image, text = image[:rows].requires_grad_(), text[:columns].requires_grad_()
    loss = SigLipLoss(chunk_size=chunk_size)
    loss.backend = backend
    same(
        lambda i, t: loss._loss(i, t, SCALE, BIAS, negative_only=negative_only),
        lambda i, t: block_of_pairs(i, t, negative_only),
        image,
        text,
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_chunks_keep_no_score_matrix(backend: str) -> None:
    image, text = (torch.randn(256, 16, requires_grad=True) for _ in range(2))
    loss = SigLipLoss(chunk_size=16)
    loss.backend = backend
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss(image, text, 10.0, -10.0)
    assert largest <= 256 * 16 * 4
    assert value.item() == pytest.approx(SigLipLoss()(image, text, 10.0, -10.0).item(), rel=1e-5)
    value.backward()
    assert image.grad is not None and image.grad.isfinite().all()


def originals() -> tuple[object, object]:
    """Load open_clip's own subclasses, once on their own base and once on the drop-in."""
    try:
        own, ours = load_open_clip(), load_open_clip()
    except UnavailableError as error:
        pytest.skip(f"open_clip is {error}")
    for name in ("DistillClipLoss", "CoCaLoss"):
        getattr(ours, name).__bases__ = (ClipLoss,)
    return own, ours


def test_the_distillation_loss_of_open_clip_runs_on_the_drop_in() -> None:
    own, ours = originals()
    image, text = features()
    teacher = [x.detach() for x in features(5)[::-1]]
    for cache_labels in (False, True):
        theirs, found = (m.DistillClipLoss(cache_labels=cache_labels) for m in (own, ours))  # type: ignore[attr-defined]
        assert isinstance(found, ClipLoss)
        for _ in range(2):
            same(
                lambda i, t, loss=found: sum(loss(i, t, SCALE, *teacher, SCALE)),
                lambda i, t, loss=theirs: sum(loss(i, t, SCALE, *teacher, SCALE)),
                image,
                text,
            )


def test_the_captioning_loss_of_open_clip_runs_on_the_drop_in() -> None:
    own, ours = originals()
    image, text = features()
    words, labels = torch.randn(2, 3, 7, dtype=torch.float64), torch.randint(7, (2, 3))
    theirs, found = (m.CoCaLoss(0.7, 1.3) for m in (own, ours))  # type: ignore[attr-defined]
    assert isinstance(found, ClipLoss)
    same(
        lambda i, t: sum(found(i, t, words, labels, SCALE)),
        lambda i, t: sum(theirs(i, t, words, labels, SCALE)),
        image,
        text,
    )
