"""Scores of images and captions from their regions and words."""

from collections.abc import Callable

from torch import Tensor
from tqdm import tqdm

from dataset import Split
from itm_kernels import ops
from itm_kernels.backends import Backend
from itm_kernels.retrieval import RetrievalReport, evaluate_scores
from models import DualEncoder
from records import Options
from vocabulary import PADDING

GLOBAL = "global"
SMOOTH_AND_SCALE = {"scan_t2i": (9.0, 6.0), "scan_i2t": (4.0, 5.0)}  # the defaults of SCAN's code
SIMILARITIES = (GLOBAL, *SMOOTH_AND_SCALE, "late")
OPERATORS = {"late": "late_interaction"} | dict.fromkeys(SMOOTH_AND_SCALE, "cross_attention")

Rows = slice | list[int]
Scorer = Callable[[Rows, Rows], Tensor]  # of images and captions -> [n, m]


def is_fine_grained(similarity: str | None) -> bool:
    """Return whether a similarity compares regions with words, rather than two embeddings."""
    return similarity not in (None, GLOBAL)


def score(
    similarity: str,
    regions: Tensor,  # [N, R, D]
    words: Tensor,  # [M, L, D]
    word_counts: Tensor,  # [M]
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the scores ``[N, M]`` of all images and captions.

    Args:
        similarity: ``"scan_t2i"`` or ``"scan_i2t"``, stacked cross attention with the defaults of
            SCAN's code, or ``"late"``, the mean of late interaction in both directions, as FILIP.
        regions: unit vectors.
        words: unit vectors, padded to L per caption.
        word_counts: words of each caption.
        backend: backend of the operators.
    """
    if similarity == "late":
        words_to_regions, regions_to_words = (
            ops.late_interaction(
                regions,
                words,
                word_counts=word_counts,
                direction=direction,
                normalize=False,
                backend=backend,
            )
            for direction in ("t2i", "i2t")
        )
        return (words_to_regions + regions_to_words) / 2
    smooth, scale = SMOOTH_AND_SCALE[similarity]
    return ops.cross_attention(
        regions,
        words,
        word_counts=word_counts,
        direction="t2i" if similarity == "scan_t2i" else "i2t",
        smooth=smooth,
        scale=scale,
        backend=backend,
    )


def scorer(model: DualEncoder, similarity: str | None, images: Tensor, words: Tensor) -> Scorer:
    """Encode a split and return a function that scores any of its images and captions.

    Args:
        model: the encoders.
        similarity: one of `SIMILARITIES`; None is the dot product of embeddings, as "global".
        images: ``[N, ...]``, as the encoder reads them.
        words: ``[M, L]`` padded word numbers.
    """
    if similarity is None or similarity == GLOBAL:
        image, text = model.embed(images, words)
        return lambda some, others: image[some] @ text[others].T
    regions, tokens = model.embed_tokens(images, words)
    counts = (words != PADDING).sum(1)
    return lambda some, others: score(similarity, regions[some], tokens[others], counts[others])


def evaluate_by_scores(scores: Scorer, split: Split, *, shows: bool) -> RetrievalReport:
    """Measure retrieval on a split, with a progress bar of blocks.

    Args:
        scores: a function of this split's images and captions.
        split: the split.
        shows: whether this process shows progress.
    """
    with tqdm(desc="evaluation", leave=False, disable=None if shows else True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return evaluate_scores(scores, len(split), len(split.captions), progress=progress)


def check_similarity(options: Options, train: Split, processes: int) -> None:
    """Refuse options that do not fit each other, the data or the number of processes.

    Raises:
        ValueError: the combination is not supported. The message names the options.
    """
    similarity = options.similarity
    if similarity is None and train.has_regions:
        raise ValueError(
            f"--encoder embedding reads features [N, F] of images, but {options.data} has regions "
            f"{list(train.images.shape)}; pass --encoder regions"
        )
    if similarity is not None and not (train.has_regions or train.has_pixels):
        raise ValueError(
            f"--encoder regions reads regions [N, R, F] of images, but {options.data} has features "
            f"{list(train.images.shape)}; pass --encoder embedding"
        )
    if not is_fine_grained(similarity):
        return
    if options.loss in ("itm", "ito"):
        raise ValueError(
            f"--loss {options.loss} needs one embedding per image, so it does not take scores of "
            f"--similarity {similarity}; pass --similarity global or another loss"
        )
    if processes > 1:
        raise ValueError(
            f"--similarity {similarity} scores the batch of one process, but {processes} processes "
            "share it; start one, or pass --similarity global"
        )
