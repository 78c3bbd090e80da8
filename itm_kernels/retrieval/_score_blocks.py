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
    """A block of scores, and the queries that they rank."""

    images: slice  # also their place among the queries of all folds
    texts: slice
    columns: Tensor | None  # the texts of the fold among these; None: all
    places: slice  # the texts among the queries of all folds
    has_positive: bool


class Fold(NamedTuple):
    """Consecutive images and their texts among the queries, and the blocks of their scores."""

    images: slice
    texts: slice
    blocks: list[Block]


def cut(image_ids: Tensor, text_ids: Tensor, folds: int, block_size: int) -> list[Fold]:
    """Cut every fold into blocks of at most `block_size` images and as many images' texts."""
    N, M = len(image_ids), len(text_ids)
    width = -(-M * block_size // N)
    found: list[Fold] = []
    queries = N  # the images of all folds come first, then the texts of every fold
    for first in range(0, N, N // folds):
        end = first + N // folds
        texts = torch.isin(text_ids, image_ids[first:end]).nonzero()[:, 0]
        windows = _windows(texts, width)
        blocks = []
        for start in range(first, end, block_size):
            images = slice(start, min(start + block_size, end))
            own = torch.isin(text_ids[texts], image_ids[images])
            for span, columns, (begin, stop) in windows:
                places = slice(queries + begin, queries + stop)
                positive = bool(own[begin:stop].any())
                blocks.append(Block(images, span, columns, places, positive))
        found.append(Fold(slice(first, end), slice(queries, queries + len(texts)), blocks))
        queries += len(texts)
    return found


def _windows(texts: Tensor, width: int) -> list[tuple[slice, Tensor | None, tuple[int, int]]]:
    """Return slices of at most `width` texts, the columns of the given texts, and their places."""
    numbers = (texts - texts[0]) // width
    ends = numbers.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    found = []
    for start, end in zip([0, *ends], ends, strict=False):
        chosen = texts[start:end]
        first, last = int(chosen[0]), int(chosen[-1])
        whole = last - first + 1 == len(chosen)
        columns = None if whole else chosen - first
        found.append((slice(first, last + 1), columns, (start, end)))
    return found


class Ranking:
    """Best positives of all queries from some blocks, then counts of the candidates around them.

    Blocks with a positive are computed for both. A positive is never compared with its second
    computation. Of a group, every rank computes each `size`-th block.
    """

    best: Tensor  # [Q], -inf without a finite positive
    counts: Tensor  # [4, Q]: above, ties, positives that tie for the best, all positives

    def __init__(
        self,
        score: ScoreFunction,
        ids: tuple[Tensor, Tensor],  # [N], [M]
        folds: Sequence[Fold],
        progress: Progress | None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self._score, self._ids, self._folds, self._progress = score, ids, folds, progress
        blocks = [block for fold in folds for block in fold.blocks]
        with_positive = [block for block in blocks if block.has_positive]
        self._first, self._all = with_positive[rank::size], blocks[rank::size]
        # Scores decide on dtype and device: a rank without a share computes one block for them.
        self._sample = None if self._first else with_positive[0]
        self._computed = 0
        self._blocks = len(self._first) + len(self._all) + (self._sample is not None)

    def find_best(self) -> None:
        """Find the best positive of every query in this rank's blocks."""
        if self._sample is not None:
            self._scores(self._sample)
        for block in self._first:
            scores = self._scores(block)
            positive = self._positive(block).to(scores.device)
            self._update(block.images, scores, positive)
            self._update(block.places, scores.T, positive.T)

    def bound_by(self, best: Tensor) -> None:  # [Q]
        """Take the best positives of all ranks, and drop counts of positives below them."""
        self.counts[2].masked_fill_(self.best < best, 0)
        self.best = best

    def count(self) -> None:
        """Count the negatives above and at the best positive in this rank's blocks."""
        above, ties, *_ = self.counts
        for block in self._all:
            negatives = self._scores(block)
            if block.has_positive:
                # Comparisons with NaN are false.
                positive = self._positive(block).to(negatives.device)
                negatives = negatives.masked_fill(positive, torch.nan)
            for where, side in ((block.images, negatives), (block.places, negatives.T)):
                best = self.best[where, None]
                above[where] += (side > best).sum(1)
                ties[where] += (side == best).sum(1)

    def ranks(self) -> list[tuple[Ranks, Ranks]]:
        """Return the ranks of the images and of the texts of every fold."""

        def of(queries: slice, candidates: slice) -> Ranks:
            above, ties, positives, own = self.counts[:, queries]
            # A query without a finite positive ranks behind all negatives.
            found = positives > 0
            above = torch.where(found, above, candidates.stop - candidates.start - own)
            ties = torch.where(found, ties, 0)
            return Ranks(1 + above + ties.double() / 2, above, ties, positives)

        return [(of(f.images, f.texts), of(f.texts, f.images)) for f in self._folds]

    def _scores(self, block: Block) -> Tensor:
        like = self.best if self._computed else None
        scores = _checked(self._score(block.images, block.texts), block, like)
        if not self._computed:
            queries = self._folds[-1].texts.stop
            self.best = scores.new_full((queries,), -torch.inf)
            self.counts = torch.zeros(4, queries, dtype=torch.int64, device=scores.device)
        self._computed += 1
        if self._progress is not None:
            self._progress(self._computed, self._blocks)
        return scores if block.columns is None else scores[:, block.columns.to(scores.device)]

    def _positive(self, block: Block) -> Tensor:
        texts = self._ids[1][block.texts]
        texts = texts if block.columns is None else texts[block.columns]
        return self._ids[0][block.images][:, None] == texts

    def _update(self, where: slice, scores: Tensor, positive: Tensor) -> None:  # [q, g] each
        """Update the best positive and the number of positives that tie for it."""
        finite = positive & scores.isfinite()
        highest = scores.masked_fill(~finite, -torch.inf).amax(1)
        number = (finite & (scores == highest[:, None])).sum(1)
        before, (_, _, positives, own) = self.best[where], self.counts
        positives[where] = torch.where(highest >= before, number, 0) + torch.where(
            before >= highest, positives[where], 0
        )
        self.best[where] = torch.maximum(before, highest)
        own[where] += positive.sum(1)


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
