"""`chunked` with DistributedDataParallel and fully_shard, on two gloo processes."""

from pathlib import Path

import pytest

import chunked_ranks


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Run all checks once: a process takes longer to start than to run them."""
    return chunked_ranks.run_all(Path(tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("name", chunked_ranks.CHECKS)
def test_two_processes(reports: list[dict[str, str]], name: str) -> None:
    for rank, report in enumerate(reports):
        failed = next((text for text in report.values() if text), "nothing failed before")
        assert report.get(name, f"did not run: {failed}") == "", f"rank {rank}: {report.get(name)}"
