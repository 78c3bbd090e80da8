"""Texts without an image in Triton's kernels: negatives of every image, part of no pair."""

import pytest
import torch

from interpreted import needs_interpreter
from loss_cases import gradients
from tests.contract.test_unmatched import EVERY, NEGATIVE, rows


@needs_interpreter
@pytest.mark.parametrize("name", sorted(EVERY))
def test_value_and_gradients_are_the_references(name: str) -> None:
    image, text = rows()
    results = []
    for backend in ("triton", "reference"):
        loss = EVERY[name][0](image, text, backend=backend, **NEGATIVE)
        results.append((loss, *gradients(loss, image, text)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
