"""A rank that stops makes the others raise within the group's time-out; none returns a number."""

import signal
from typing import Any

import pytest

import hosts
from dying_ranks import MOMENTS, outcomes, serve

Outcomes = dict[str, tuple[list[Any], int | None]]  # by the moment at which a rank stops


@pytest.fixture(scope="module", params=["gather", "ring"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    cases = [(request.param, moment, "killed") for moment in MOMENTS]
    found = outcomes(3, tmp_path_factory.mktemp("killed"), serve, cases, listen=2)
    return dict(zip(MOMENTS, found, strict=True))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_rank(killed: Outcomes, moment: str) -> None:
    """Two survivors raise what the process group raises."""
    found, code = killed[moment]
    assert code == -signal.SIGKILL
    for outcome in found:
        assert isinstance(outcome, str) and outcome.startswith(("RuntimeError", "Dist")), found


@pytest.fixture(scope="module")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    cases = [("gather", moment, "asleep") for moment in MOMENTS]
    found = outcomes(2, tmp_path_factory.mktemp("asleep"), serve, cases, listen=1)
    return dict(zip(MOMENTS, found, strict=True))


@pytest.mark.parametrize("moment", MOMENTS)
def test_sleeping_rank(asleep: Outcomes, moment: str) -> None:
    """A rank that does not answer is no different from a dead one, after the time-out."""
    found, code = asleep[moment]
    assert code is None
    (outcome,) = found
    assert isinstance(outcome, str) and "imed out" in outcome, found


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    if reason := hosts.why_not():
        pytest.skip(reason)
    folder, cases = tmp_path_factory.mktemp("cut_off"), [(moment,) for moment in MOMENTS]
    found = outcomes(3, folder, hosts.serve, cases, prepare=hosts.join)
    return dict(zip(MOMENTS, found, strict=True))


@pytest.mark.parametrize("moment", MOMENTS)
def test_host_that_is_cut_off(cut_off: Outcomes, moment: str) -> None:
    """All three hosts raise, the lost one too: no connection is closed, and none answers."""
    found, _ = cut_off[moment]
    for outcome in found:
        assert isinstance(outcome, str) and "Error: " in outcome, found
