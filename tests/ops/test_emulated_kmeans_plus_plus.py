"""CUDA's k-means++, from binding to kernel, on the emulator."""

from collections.abc import Iterator

import pytest
import torch

from emulated import NAMESPACE, SCHEDULES, as_native, launches
from kernels import MARKS
from tests.ops.test_native_kmeans_plus_plus import (  # noqa: F401
    Start,
    draws_of,
    rows,
    test_copies_of_a_centroid_are_not_drawn_while_there_are_other_rows,
    test_lower_precisions,
    test_nan_repeats_the_first_centroid,
    test_rows_are_drawn_by_their_squared_distance,
    test_rows_are_those_of_the_oracle,
    test_strides,
)

pytestmark = MARKS["emulated"]


@pytest.fixture(autouse=True)
def start() -> Iterator[Start]:
    with as_native():
        yield getattr(torch.ops, NAMESPACE).kmeans_plus_plus


def test_every_schedule_gives_the_same_bits(start: Start) -> None:
    member, found = rows(70, 20, seed=2).T > -0.5, []
    for schedule in SCHEDULES:
        with as_native(schedule):
            found.append(start(rows(70, 37, dtype=torch.float32), member, draws_of(4, 70)))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_two_launches_for_all_problems_and_centroids(start: Start) -> None:
    before = launches()
    start(rows(32, 8), rows(7, 32) > 0, draws_of(6, 32).T.contiguous().T[:, :32])
    assert launches() - before == 2


def test_opcheck(start: Start) -> None:
    for member in (None, rows(7, 5) > 0):
        torch.library.opcheck(start, (rows(5, 4), member, draws_of(3, 5)))


def test_more_rows_than_it_takes_are_an_error(start: Start) -> None:
    with pytest.raises(RuntimeError, match="1025 x 1025 rows; CUDA kernels .* up to 1024"):
        start(rows(1025, 1), None, draws_of(1, 1025))
