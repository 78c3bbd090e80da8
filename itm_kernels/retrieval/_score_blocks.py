"""Ranks from blocks of scores: the best positive of every query first, then counts around it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._public import UnnamedTypeError, UnnamedValueError
from itm_kernels.ops._ranks import Ranks

ScoreFunction = Callable[[slice, slice], Tensor]  # of images and texts -> [n, m]
Progress = Callable[[int, int], object]  # of the blocks computed and the blocks in all


class Block(NamedTuple):
    """A block of scores, and its candidates."""

    images: slice
    texts: slice
    columns: Tensor | None  # the texts of the fold among these; None: all
    rows: slice  # places of the images in the fold
    places: slice  # places of the texts in the fold
    has_positive: bool


class Fold(NamedTuple):
    """Consecutive images, their texts, and the blocks that hold their scores."""

    images: int
    texts: int
    blocks: list[Block]


def cut(image_ids: Tensor, text_ids: Tensor, folds: int, block_size: int) -> list[Fold]:
    """Cut every fold into blocks of at most `block_size` images and as many images' texts."""
    N, M = len(image_ids), len(text_ids)
    width = -(-M * block_size // N)
    found = []
    for first in range(0, N, N // folds):
        end = first + N // folds
        texts = torch.isin(text_ids, image_ids[first:end]).nonzero()[:, 0]
        windows = _windows(texts, width)
        blocks = []
        for start in range(first, end, block_size):
            images = slice(start, min(start + block_size, end))
            rows = slice(images.start - first, images.stop - first)
            own = torch.isin(text_ids[texts], image_ids[images])
            for span, columns, places in windows:
                blocks.append(Block(images, span, columns, rows, places, bool(own[places].any())))
        found.append(Fold(N // folds, len(texts), blocks))
    return found


def _windows(texts: Tensor, width: int) -> list[tuple[slice, Tensor | None, slice]]:
    """Return slices of at most `width` texts, the columns of the given texts, and their places."""
    numbers = (texts - texts[0]) // width
    ends = numbers.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        chosen = texts[start:end]
        first, last = int(chosen[0]), int(chosen[-1])
        whole = last - first + 1 == len(chosen)
        columns = None if whole else chosen - first
        found.append((slice(first, last + 1), columns, slice(start, end)))
    return found


def ranks_of_folds(
    score: ScoreFunction,
    ids: tuple[Tensor, Tensor],  # [N], [M]
    folds: Sequence[Fold],
    progress: Progress | None,
) -> list[tuple[Ranks, Ranks]]:
    """Return the ranks of the images and of the texts of every fold.

    Blocks with a positive are computed before all others, and once more: their positives bound the
    counts. A positive is never compared with its second computation.
    """
    computed = 0
    blocks = sum(1 + block.has_positive for fold in folds for block in fold.blocks)
    like: Tensor | None = None

    def scored(block: Block) -> Tensor:
        nonlocal computed, like
        scores = _checked(score(block.images, block.texts), block, like)
        like = scores[:0, :0]
        computed += 1
        if progress is not None:
            progress(computed, blocks)
        return scores if block.columns is None else scores[:, block.columns.to(scores.device)]

    def own(block: Block) -> Tensor:
        texts = ids[1][block.texts]
        texts = texts if block.columns is None else texts[block.columns]
        return ids[0][block.images][:, None] == texts

    return [_ranks(scored, own, fold) for fold in folds]


def _ranks(
    scored: Callable[[Block], Tensor], own: Callable[[Block], Tensor], fold: Fold
) -> tuple[Ranks, Ranks]:
    image, text = _Queries(fold.images), _Queries(fold.texts)
    for block in fold.blocks:
        if block.has_positive:
            scores = scored(block)
            positive = own(block).to(scores.device)
            image.find_best(block.rows, scores, positive)
            text.find_best(block.places, scores.T, positive.T)
    for block in fold.blocks:
        scores = scored(block)
        if block.has_positive:
            # Comparisons with NaN are false.
            scores = scores.masked_fill(own(block).to(scores.device), torch.nan)
        image.count(block.rows, scores)
        text.count(block.places, scores.T)
    return image.ranks(fold.texts), text.ranks(fold.images)


class _Queries:
    """The best positive of every query, and counts of the candidates around it."""

    best: Tensor  # [Q], -inf without a finite positive
    above: Tensor  # [Q]
    ties: Tensor  # [Q]
    positives: Tensor  # [Q], that tie for the best
    own: Tensor  # [Q], all positives, finite or not

    def __init__(self, queries: int) -> None:
        self.queries = queries

    def find_best(self, where: slice, scores: Tensor, positive: Tensor) -> None:  # [q, g] each
        """Update the best positive and the number of positives that tie for it."""
        if not hasattr(self, "best"):  # dtype and device are those of the first scores
            self.best = scores.new_full((self.queries,), -torch.inf)
            counts = torch.zeros(4, self.queries, dtype=torch.int64, device=scores.device)
            self.above, self.ties, self.positives, self.own = counts
        finite = positive & scores.isfinite()
        highest = scores.masked_fill(~finite, -torch.inf).amax(1)
        number = (finite & (scores == highest[:, None])).sum(1)
        before = self.best[where]
        self.positives[where] = torch.where(highest >= before, number, 0) + torch.where(
            before >= highest, self.positives[where], 0
        )
        self.best[where] = torch.maximum(before, highest)
        self.own[where] += positive.sum(1)

    def count(self, where: slice, negatives: Tensor) -> None:  # [q, g], NaN for positives
        """Count negatives above the best positive and negatives that tie with it."""
        best = self.best[where, None]
        self.above[where] += (negatives > best).sum(1)
        self.ties[where] += (negatives == best).sum(1)

    def ranks(self, candidates: int) -> Ranks:
        """Return the ranks; a query without a finite positive ranks behind all negatives."""
        found = self.positives > 0
        above = torch.where(found, self.above, candidates - self.own)
        ties = torch.where(found, self.ties, 0)
        return Ranks(1 + above + ties.double() / 2, above, ties, self.positives)


def _checked(scores: object, block: Block, like: Tensor | None) -> Tensor:
    """Check what a score function returns for a block."""
    i, j = block.images, block.texts
    name = f"the block of images {i.start}:{i.stop} and texts {j.start}:{j.stop}"
    shape = [i.stop - i.start, j.stop - j.start]
    found = _checks.is_tensor(name, scores)
    if found.dtype not in _checks.FLOATING:
        _checks.floating(name, found)
    if list(found.shape) != shape:
        raise UnnamedValueError(
            f"{name} must have shape {shape}, got {_checks.describe(found)}; "
            "the score function is called with two slices"
        )
    if like is not None and (found.dtype, found.device) != (like.dtype, like.device):
        raise UnnamedTypeError(
            f"{name} is {found.dtype} on {found.device}, blocks before it {like.dtype} on "
            f"{like.device}; return one dtype and device"
        )
    return found


def matrix_blocks(scores: Tensor) -> ScoreFunction:
    """Return the score function of a matrix."""
    return lambda images, texts: scores[images, texts]
