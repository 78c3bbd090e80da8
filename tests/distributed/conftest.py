"""Processes for the tests of losses over ranks."""

from collections.abc import Iterator

import pytest

from ranks import Ranks, forking


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    """Two ranks."""
    ranks = Ranks(2, forking())
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def four() -> Iterator[Ranks]:
    """Four ranks."""
    ranks = Ranks(4, forking())
    yield ranks
    ranks.close()
