"""A rank that stops makes the others raise within the group's time-out; none returns a number."""

import signal
from pathlib import Path

import pytest

import hosts
from dying_ranks import MOMENTS, outcomes, serve


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_rank(tmp_path: Path, moment: str, exchange: str) -> None:
    """Two survivors raise what the process group raises."""
    found, code = outcomes(3, tmp_path, serve, exchange, moment, "killed", listen=2)
    assert code == -signal.SIGKILL
    for outcome in found:
        assert isinstance(outcome, str) and outcome.startswith(("RuntimeError", "Dist")), found


@pytest.mark.parametrize("moment", MOMENTS)
def test_sleeping_rank(tmp_path: Path, moment: str) -> None:
    """A rank that does not answer is no different from a dead one, after the time-out."""
    found, code = outcomes(2, tmp_path, serve, "gather", moment, "asleep", listen=1)
    assert code is None
    (outcome,) = found
    assert isinstance(outcome, str) and "imed out" in outcome, found


@pytest.mark.parametrize("moment", MOMENTS)
def test_host_that_is_cut_off(tmp_path: Path, moment: str) -> None:
    """All three hosts raise, the lost one too: no connection is closed, and none answers."""
    if reason := hosts.why_not():
        pytest.skip(reason)
    found, _ = outcomes(3, tmp_path, hosts.serve, moment, prepare=hosts.join)
    for outcome in found:
        assert isinstance(outcome, str) and "Error: " in outcome, found
