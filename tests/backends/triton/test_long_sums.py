"""Triton's sums over a batch: chains that grow with it are added up in fp64, in its interpreter.

The interpreter pays per step: chains are of 128 terms, all equal and such that fp32 rounds every
addition the same way, which is off by 1.9e-6.
"""

from unittest.mock import patch

import torch

from interpreted import needs_interpreter

pytestmark = needs_interpreter

CHAIN, EPS = 128, torch.finfo(torch.float32).eps


def test_a_row_that_is_hardest_for_all() -> None:
    from itm_kernels.triton import _segment_sum
    from tests.backends.triton.test_segments import entries_of

    image, text = torch.zeros(1, 1), torch.full((CHAIN, 1), 0.979)
    key = torch.zeros(CHAIN, dtype=torch.int64)
    for chunk in (CHAIN, CHAIN // 4):  # chunks of their own, added up as another chain
        entries = entries_of(key, torch.ones(CHAIN), 1, CHAIN, CHAIN)
        with patch.object(_segment_sum, "_ENTRIES", 1), patch.object(_segment_sum, "_CHUNK", chunk):
            found, _ = _segment_sum.segment_sum(entries, image, text)
        torch.testing.assert_close(found.double(), CHAIN * text[:1].double(), rtol=EPS, atol=0)


def test_log_sum_exp_of_many_tiles() -> None:
    from itm_kernels.triton._log_sums import _join_tiles_kernel

    highest = torch.full((16 * CHAIN, 1), 3000 - 0.46875)  # exact in fp32, e^-0.46875 is not
    highest[0] = 3000  # the maximum, that the others are relative to
    tiles = torch.stack([highest, torch.zeros_like(highest)])
    found, base = torch.empty(1), torch.empty(1)
    _join_tiles_kernel[(1, 1)](
        tiles, tiles, found, base, found, base, 1, 1, 1, len(highest), ANCHORS=64, TILES=16
    )
    assert base == 3000
    # A sum that is off by 1.9e-6 is a logarithm that is off by as much.
    wanted = (highest.double() - 3000).logsumexp(0)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=7e-7)


def test_softmax_over_many_members() -> None:
    from itm_kernels.triton._synthesis_kernels import softmax_kernel

    logits = torch.full((1, 16 * CHAIN), -0.469)
    logits[0, 0] = 0
    wanted = logits.double().softmax(1)
    valid, starts = torch.zeros(1, 1, dtype=torch.bool), torch.tensor([0, 16 * CHAIN])
    members = torch.zeros(1, 16 * CHAIN, dtype=torch.int32)
    softmax_kernel[(1,)](
        logits, valid, starts, members, members, members, 1, 1, 1, 16 * CHAIN,
        ROWS=1, COLUMNS=16, PER_ANCHOR=False, HAS_IDS=False,
    )  # fmt: skip
    torch.testing.assert_close(logits.double(), wanted, rtol=4 * EPS, atol=0)


def test_means_of_many_rows_are_split_among_programs() -> None:
    from itm_kernels.triton.kmeans import split_rows

    # Programs of a split: tiles of D times those of clusters.
    assert split_rows(1 << 21, 8, 8, 32) == 1024  # chains of 1,024 rows
    assert split_rows(1 << 21, 4096, 512, 32) == 1 << 14  # sums of rows / 4
    assert split_rows(4096, 8, 8, 32) == 128  # two programs for every processor
    assert split_rows(128, 1024, 128, 32) == 128  # no split
