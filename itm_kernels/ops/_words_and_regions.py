"""Checks that are the same for all scores of words against regions."""

from typing import NamedTuple

import torch
from torch import Tensor

from itm_kernels import _checks
from itm_kernels._describe import shape
from itm_kernels._public import UnnamedValueError

# Numbers of rows that exist, int64, for contexts and for queries. None: all rows exist.
Counts = tuple[Tensor | None, Tensor | None]


class Sets(NamedTuple):
    """Checked sets of rows: for every query row there is a result over a whole context."""

    context: Tensor  # [N, C, D]
    query: Tensor  # [M, Q, D]
    counts: Counts  # [N] from 0 to C, and [M] from 0 to Q
    mistaken: tuple[Tensor | None, Tensor | None]  # [N] and [M] bool: counts that were out of range
    transposed: bool  # texts are contexts: results `[M, N]` are to be transposed

    def scores(self, found: Tensor) -> Tensor:
        """Return results as scores `[images, texts]`, NaN where a count was out of range."""
        of_context, of_query = self.mistaken
        if of_context is not None:
            found = found.masked_fill(of_context[:, None], torch.nan)
        if of_query is not None:
            found = found.masked_fill(of_query, torch.nan)
        return found.T if self.transposed else found


def checked_sets(
    regions: Tensor,
    words: Tensor,
    region_counts: Tensor | None,
    word_counts: Tensor | None,
    direction: str,
) -> Sets:
    """Check regions and words, and arrange them by the direction, a valid option."""
    for name, value, layout in (("regions", regions, "[N, R, D]"), ("words", words, "[M, L, D]")):
        _checks.floating(name, value, layout)
    regions, words = _checks.alike(regions=regions, words=words)
    of_regions, regions_mistaken = _counts("region_counts", region_counts, regions, "regions")
    of_words, words_mistaken = _counts("word_counts", word_counts, words, "words")
    if direction == "t2i":
        mistaken = regions_mistaken, words_mistaken
        return Sets(regions, words, (of_regions, of_words), mistaken, transposed=False)
    mistaken = words_mistaken, regions_mistaken
    return Sets(words, regions, (of_words, of_regions), mistaken, transposed=True)


def _counts(
    name: str, value: Tensor | None, rows: Tensor, what: str
) -> tuple[Tensor | None, Tensor | None]:
    """Check the numbers of rows that exist; return them, and which are out of range if unknown.

    Values on a device are not read, which would synchronise: the scores of their sets become NaN.
    """
    if value is None:
        return None, None
    _checks.identifiers(name, value, rows.shape[0], rows, what="count")
    counts, most = value.to(rows.device, torch.int64, non_blocking=True), rows.shape[1]
    clamped = counts.clamp(0, most)
    outside = clamped != counts
    if not _checks.can_read(counts):
        return clamped, outside
    if outside.any():
        first = int(outside.int().argmax())
        raise UnnamedValueError(
            f"{name}[{first}] is {int(counts[first])}, but {what} {shape(rows.shape)} has 0 to "
            f"{most} per sample; counts are those of rows before padding"
        )
    return counts, None
