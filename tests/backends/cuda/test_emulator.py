"""The emulator itself: it runs correct kernels, and names the fault of wrong ones."""

import ctypes
import math

import pytest

from emulated import (
    AS_ON_A_DEVICE,
    CONTRACTED,
    EMULATOR,
    SCHEDULES,
    as_native,
    library,
    needs_compiler,
    operators,
)

pytestmark = needs_compiler

THREADS = 64
VALUES = [3 * i + 1 for i in range(THREADS)]


@pytest.fixture(scope="module")
def rules() -> ctypes.CDLL:
    return ctypes.CDLL(str(library("rules", [EMULATOR / "rules.cpp"], device=AS_ON_A_DEVICE)))


def run(rules: ctypes.CDLL, name: str, schedule: str) -> tuple[str, list[int]]:
    """Return the emulator's error for a kernel, and the kernel's output."""
    numbers = ctypes.c_int * THREADS
    to, said = numbers(), ctypes.create_string_buffer(500)
    order, seed = SCHEDULES[schedule]
    rules.emulator_schedule(order, ctypes.c_uint64(seed))
    rules.run_kernel(name.encode(), numbers(*VALUES), to, said, ctypes.c_int64(500))
    return said.value.decode(), list(to)


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> str:
    return request.param


def of_votes() -> list[int]:
    odd = sum((value % 2) << lane for lane, value in enumerate(VALUES[:32]))
    odd -= (odd >> 31) << 32  # as an int
    sums = [sum(VALUES[warp : warp + 32]) + 1000 for warp in (0, 32)]
    return [odd if i % 2 else sums[i // 32] for i in range(THREADS)]


RIGHT = {
    "reverse": VALUES[::-1],
    "shift": VALUES[1:] + VALUES[:1],
    "copied": VALUES[::-1],
    "copied, own value": VALUES,
    "two groups": VALUES,
    "zero filled": [value if i % 2 == 0 else 0 for i, value in enumerate(VALUES)],
    "votes": of_votes(),
}


@pytest.mark.parametrize("name", RIGHT)
def test_correct_kernels_run(rules: ctypes.CDLL, name: str, schedule: str) -> None:
    assert run(rules, name, schedule) == ("", RIGHT[name])


WRONG = {
    "reverse without a barrier": "no barrier between|reads an unwritten value",
    "shift without a barrier": "no barrier between a read and a write|no barrier between a write",
    "barrier in a branch": "barrier: threads wait at rules.cpp:",
    "barrier after a return": "barrier: thread 7 has ended while others wait at rules.cpp:",
    "out of bounds": "shared memory: thread 63 is out of bounds",
    "misaligned": "shared memory: an access is not aligned",
    "two numbers loaded off their alignment": "an access of 8 bytes is not aligned at rules.cpp:",
    "four numbers loaded off their alignment": "an access of 16 bytes is not aligned at rules.cpp:",
    "two numbers stored off their alignment": "an access of 8 bytes is not aligned at rules.cpp:",
    "four numbers stored off their alignment": "an access of 16 bytes is not aligned at rules.cpp:",
    "larger than asked for": "a window exceeds the launch's allocation",
    "never written": "reads an unwritten value",
    "copied without a wait": "does not wait for a copy",
    "copied, group left open": "does not wait for a copy",
    "two groups, too many open": "does not wait for a copy",
    "copies left": "ends without waiting for its copies",
    "shuffle without a lane": "a mask names thread 3, which has ended",
}


@pytest.mark.parametrize("name", WRONG)
def test_faults_are_named(rules: ctypes.CDLL, name: str, schedule: str) -> None:
    said, _ = run(rules, name, schedule)
    assert any(words in said for words in WRONG[name].split("|")), said or "nothing"


def test_schedules_differ(rules: ctypes.CDLL) -> None:
    last = [run(rules, "last of all", schedule)[1][0] for schedule in SCHEDULES]
    assert last[:2] == [THREADS - 1, 0]
    assert len(set(last)) > 3
    assert last == [run(rules, "last of all", schedule)[1][0] for schedule in SCHEDULES]


# On a device a product within a sum is not rounded: a kernel that compares the sum with a product
# that another kernel has stored may decide a tie differently.
@pytest.mark.skipif(not CONTRACTED, reason="the CPU has no fused multiply-add, or none to ask for")
def test_products_are_contracted_as_by_nvcc(rules: ctypes.CDLL, schedule: str) -> None:
    said, found = run(rules, "contracted", schedule)
    assert not said
    assert sum(found) > THREADS / 2


def test_uninitialised_memory_shows() -> None:
    sum_too_far = operators().emulator_sum_too_far
    sum_too_far.restype = ctypes.c_double
    with as_native():
        assert math.isnan(sum_too_far(5, False))
        assert sum_too_far(5, True) >= 2.0**63
