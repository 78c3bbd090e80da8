"""Weighted sums of rows in two parts of fp16: as exact as three of bf16, in half the products."""

import pytest
import torch

from interpreted import needs_interpreter

pytestmark = needs_interpreter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M, D", [(1, 1), (200, 70)])
def test_parts_of_fp16_are_as_exact_as_those_of_bf16(M: int, D: int, dtype: torch.dtype) -> None:
    from itm_kernels.triton import _clusters, _member_sums, _scaled_operands

    generator = torch.Generator().manual_seed(0)
    lengths = torch.logspace(-4, 4, M)[torch.randperm(M, generator=generator)]
    rows = (torch.randn(M, D, generator=generator) * lengths[:, None]).to(dtype)
    own = torch.arange(M) * 2 // M
    clusters, _ = _clusters.clusters_of(own, 2)
    weights = 20 * torch.randn(9, M, generator=generator)
    for k in range(2):
        weights[:, own == k] = weights[:, own == k].softmax(1)
    wanted = torch.stack(
        [weights[:, own == k].double() @ rows[own == k].double() for k in (0, 1)], 1
    )
    kind = "parts" if dtype == torch.float32 else "half"
    scaled = _member_sums.scaled_row_operand(
        *_scaled_operands.scaled_rows(rows, kind, False, fine=True), rows
    )
    before = _member_sums.row_operand(rows)
    assert scaled.terms == 2
    assert scaled.rows.shape[0] == (2 if dtype == torch.float32 else 1)
    errors = []
    for factor in (scaled, before):
        found, valid = torch.empty(9, 2, D), torch.ones(9, 2, dtype=torch.bool)
        _member_sums.store_vectors(clusters, weights, factor, valid, found)
        errors.append((found - wanted).abs().max() / wanted.abs().max())
    assert errors[0] <= 2 * errors[1] + 1e-7
