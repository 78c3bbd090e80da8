"""Evaluation of retrieval from a score function or a score matrix."""

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from itm_kernels import _checks
from itm_kernels._public import UnnamedTypeError, UnnamedValueError, public
from itm_kernels.distributed._agreement import Agreement
from itm_kernels.retrieval._inputs import check_folds, check_ks, check_positives, ids_of_layout
from itm_kernels.retrieval._over_ranks import rank_blocks
from itm_kernels.retrieval._score_blocks import (
    Progress,
    Ranking,
    ScoreFunction,
    cut,
    matrix_blocks,
)
from itm_kernels.retrieval.report import (
    RetrievalReport,
    mean,
    report,
    warn_of_large_ks,
    warn_of_scores,
)

_FUNCTION = "evaluate_scores"


@public
@torch.no_grad()
def evaluate_scores(
    scores: Tensor | ScoreFunction,  # [N, M], or a function of two slices -> [n, m]
    num_images: int | None = None,  # N
    num_texts: int | None = None,  # M
    *,
    image_ids: Tensor | None = None,  # [N]
    text_ids: Tensor | None = None,  # [M]
    ks: Sequence[int] = (1, 5, 10),
    folds: int = 1,
    block_size: int = 128,
    progress: Progress | None = None,
    group: ProcessGroup | None = None,
) -> RetrievalReport:
    r"""Measure retrieval by scores that a model computes itself, one block at a time.

    The report is that of `evaluate`, for models whose score is no product of embeddings, like cross
    attention of words and regions (SCAN, SGRAF) or a matching head. The matrix of all scores is
    never stored: 5,000 images and 25,000 texts are ranked in the memory of one block.

    A score function is called as ``scores(images, texts)`` with two slices, without gradients. The
    blocks that contain a positive are computed first and give every query its best positive. Then
    every block is computed, and negatives are counted above and at these scores. So every block is
    computed once, and those with a positive twice: with the texts in the order of the images, 1 in
    ``N / block_size`` blocks is. Candidates tie if their computed scores are equal.

    Args:
        scores: ``[N, M]`` scores, higher is better, or a function that returns those of a slice of
            the images and a slice of the texts, ``[n, m]``, for example
            ``lambda i, j: ops.cross_attention(regions[i], words[j])``.
        num_images: N; required with a function.
        num_texts: M; required with a function.
        image_ids: ``[N]`` integers; given together with `text_ids`. Without ids, M is a multiple
            of N and text j belongs to image ``j // (M // N)``, the layout of VSE++.
        text_ids: ``[M]`` integers; a text belongs to every image with its id.
        ks: cutoffs k of R@k, each at least 1, without repetition.
        folds: number of folds of consecutive images. Each fold is evaluated with only its own
            texts, and every metric is the mean over folds: ``folds=5`` is the MSCOCO protocol with
            1,000 images per fold. Numbers of ties are summed. Blocks between folds are skipped.
        block_size: images per block. A block has as many texts as so many images have on average.
        progress: called as ``progress(done, total)`` with numbers of blocks after every block.
        group: a process group over whose ranks the blocks are spread. Every rank passes the same
            arguments, so each can score all images and texts; each computes an equal share of the
            blocks, and gets the same report. None: this process computes all blocks.

    Returns:
        Recalls in percent, median ranks, mean ranks, MRR and the number of queries with ties, for
        both directions, and the sum of the recalls.

    Raises:
        TypeError: an argument or a block has the wrong type or dtype.
        ValueError: shapes do not fit, `ks` is empty, repeats a number or has one below 1, an id
            appears on one side only, or `folds` does not divide N; with a group, ranks pass
            different arguments.
        RuntimeError: another rank of the group raised an error.

    Warns:
        UserWarning: a k exceeds the number of candidates, or all positives of a query have scores
            that are not finite. Such a query ranks behind all of its negatives; a negative with a
            score of NaN ranks last. Of a group, rank 0 warns.

    Source: Faghri et al., VSE++, 2018, section 4; Lee et al., Stacked Cross Attention, 2018,
    section 4.1, for the folds.

    Example:
        >>> import torch
        >>> from itm_kernels import ops
        >>> from itm_kernels.retrieval import evaluate_scores
        >>> image, text = torch.eye(3), torch.tensor([[0.9, 0.1, 0], [0.5, 0.4, 0], [0, 0, 1]])
        >>> def score(images: slice, texts: slice) -> torch.Tensor:
        ...     return -ops.similarity(image[images], text[texts], metric="l1")
        >>> print(evaluate_scores(score, 3, 3, ks=(1, 2)))
                           R@1     R@2  median rank  mean rank     MRR
        image to text    100.0   100.0          1.0        1.0   1.000
        text to image     66.7   100.0          1.0        1.3   0.833
        R-sum 366.7
    """
    agreement = None if group is None else Agreement(group, "sum", "gather")
    rank, size = (0, 1) if agreement is None else (agreement.rank, agreement.size)

    def start() -> tuple[Ranking, dict[str, object]]:
        score, N, M = _function(scores, num_images, num_texts)
        check_ks(ks)
        _checks.integer("folds", folds, 1)
        check_folds(folds, N, "images")
        _checks.integer("block_size", block_size, 1)
        if progress is not None and not callable(progress):
            raise UnnamedTypeError(
                "progress must be a function of the numbers of computed and of all blocks, "
                f"got {_checks.describe(progress)}"
            )
        ids = _ids(N, M, image_ids, text_ids)
        blocks = cut(*ids, folds, block_size)
        same = {"num_images": N, "num_texts": M, "ks": tuple(ks), "folds": folds}
        same |= {"block_size": block_size, "ids": _digest(*ids)}
        return Ranking(score, ids, blocks, progress, rank, size), same

    if agreement is None or size == 1:
        ranking, _ = start()
        ranking.find_best()
        ranking.count()
    else:
        ranking = rank_blocks(_FUNCTION, agreement, start)
    ranked = ranking.ranks()
    if rank == 0:
        warn_of_large_ks(_FUNCTION, ks, ranked)
        warn_of_scores(_FUNCTION, ranked, "check the score function")
    return mean([report(images, texts, ks) for images, texts in ranked])


def _function(
    scores: Tensor | ScoreFunction, num_images: int | None, num_texts: int | None
) -> tuple[ScoreFunction, int, int]:
    """Return a score function and the numbers of images and texts."""
    counts = {"num_images": num_images, "num_texts": num_texts}
    for name, count in counts.items():
        if count is not None:
            _checks.integer(name, count, 1)
    if isinstance(scores, Tensor):
        _checks.floating("scores", scores, "[N, M]")
        for (name, count), size in zip(counts.items(), scores.shape, strict=True):
            if count is not None and count != size:
                raise UnnamedValueError(
                    f"{name} is {_checks.shown(count)}, but scores is {list(scores.shape)}; "
                    "leave it out"
                )
        return matrix_blocks(scores), *scores.shape
    if not callable(scores):
        raise UnnamedTypeError(
            "scores must be a torch.Tensor [N, M] or a function of two slices (images, texts), "
            f"got {_checks.describe(scores)}; for blocks in files or lists, return from a function "
            "what the slices ask for"
        )
    for name, count in counts.items():
        if count is None:
            raise UnnamedTypeError(f"scores is a function; pass {name} too")
    assert num_images is not None and num_texts is not None
    return scores, int(num_images), int(num_texts)


def _ids(
    N: int, M: int, image_ids: Tensor | None, text_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return checked ids on the CPU; without ids, those of the VSE++ layout."""
    given = []
    for name, ids, count in (("image_ids", image_ids, N), ("text_ids", text_ids, M)):
        if ids is not None:
            _checks.identifiers(name, ids, count, ids)
            given.append(ids.to("cpu", torch.int64))
    if len(given) == 1:
        names = ("image_ids", "text_ids") if text_ids is None else ("text_ids", "image_ids")
        raise UnnamedValueError(f"{names[0]} is given without {names[1]}; pass both or neither")
    if not given:
        if M % N:
            raise UnnamedValueError(
                f"{M} texts are not a multiple of {N} images; pass image_ids and text_ids"
            )
        return ids_of_layout(N, M, torch.device("cpu"))
    check_positives(*given)
    return given[0], given[1]


def _digest(*ids: Tensor) -> str:
    """Return some characters that differ for other ids."""
    return sha256(b"".join(side.numpy().tobytes() for side in ids)).hexdigest()[:16]
