"""Words against regions: SCAN's cross attention and MaxSim of all images and texts.

Least work: one product of all regions and words forward, and two backward if all scores have a
gradient. With SCAN's loss with `max_violation`, up to 3 N of the N x N scores have one, and the
backward pass needs the products of their pairs only.
"""

from dataclasses import replace
from functools import partial

import pytest

from benchmarks import inputs
from benchmarks.interleaved import Row
from benchmarks.limits import Work
from benchmarks.rivals import Function, eager, fine_grained, packages, plain
from benchmarks.shapes import PAPERS, REGIONS, WIDTH, WORDS, Size
from itm_kernels import losses, ops

SIZES = [Size(PAPERS, WIDTH), Size(PAPERS, WIDTH // 2)]
# Forms that attend keep several [N, M, L, D], which is 1.3 GB for 20 words and 3.4 GB for 50.
ATTENDS_UP_TO = 20


def row_of(operator: str, size: Size, words: int, device: str) -> Row:
    """Return a row with all regions and words of N images and N texts."""
    sets = inputs.words_and_regions(size, REGIONS, words, device)
    product = 2.0 * size.N * REGIONS * size.N * words * size.D
    work = Work("product", product, 2 * product)
    return Row(operator, size, sets, work, case=f"R={REGIONS} L={words}")


def few(quick: bool, words: int) -> int:
    """Return the words of a row; a quick run needs few."""
    return words // 4 if quick else words


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_cross_attention(compare, sized, compiled, quick, device, size, words):
    size, words = sized(size), few(quick, words)
    attending = {}
    if words <= ATTENDS_UP_TO:
        attending = {
            "eager": plain(fine_grained.attends),
            "scan": plain(fine_grained.scan_loop),
        }
    compare(
        row_of("cross_attention", size, words, device),
        partial(ops.cross_attention, smooth=fine_grained.SMOOTH, scale=fine_grained.SCALE),
        fine_grained.from_gram,
        gram=plain(fine_grained.from_gram),
        gram_compile=compiled(fine_grained.from_gram),
        **attending,
    )


def with_hinges(scores: Function, loss: Function) -> Function:
    """Return SCAN's loss of the scores."""
    return lambda regions, words: loss(scores(regions, words))


def bench_scan(compare, sized, quick, device):
    size, words = sized(SIZES[0]), few(quick, WORDS[0])
    row = row_of("scan max_violation", size, words, device)
    pairs = 3 * size.N * REGIONS * words * size.D
    work = Work("product", row.work.forward, 4.0 * pairs)
    row = replace(row, uses=("cross_attention", "max_of_hinges_from_scores"), work=work)
    attention = partial(ops.cross_attention, smooth=fine_grained.SMOOTH, scale=fine_grained.SCALE)
    theirs = eager.max_of_hinges_from_scores
    compare(
        row,
        with_hinges(attention, losses.MaxOfHingesLoss(eager.MARGIN).from_scores),
        with_hinges(fine_grained.from_gram, theirs),
        eager=plain(with_hinges(fine_grained.attends, theirs)),
        scan=plain(with_hinges(fine_grained.scan_loop, theirs)),
        gram=plain(with_hinges(fine_grained.from_gram, theirs)),
    )


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def bench_late_interaction(compare, sized, compiled, quick, device, size, words):
    size, words = sized(size), few(quick, words)
    compare(
        row_of("late_interaction", size, words, device),
        ops.late_interaction,
        fine_grained.max_sim,
        eager=plain(fine_grained.max_sim),
        compile=compiled(fine_grained.max_sim),
        late_interaction_kernels=packages.late_interaction_kernels,
    )
