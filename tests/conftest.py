"""Settings of the whole suite, and what the tests that hold for every loss run over."""

from collections.abc import Iterator

import pytest
import torch

from eager_backend import as_native
from loss_cases import CASES, Case

# Tests are small: threads would only wait for one another, most of all on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run on the formula, and through operators, dispatcher and autograd.Function."""
    with as_native():
        yield request.param


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Run for every loss."""
    return request.param
