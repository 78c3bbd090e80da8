"""`pytest --complete`: fail a run that skips tests or does not run every Triton launcher.

A skipped test, or a backend that silently falls back to another one, would pass unnoticed.
"""

import functools
import importlib
from collections.abc import Callable, Generator
from typing import Any

import pytest

from itm_kernels import backends
from itm_kernels.ops._define import DEFINITIONS, operator_of


class Complete:
    """Plugin: no test is skipped and, if Triton is interpreted, every operator's launchers run."""

    def __init__(self) -> None:
        self.idle: set[str] = set()
        if backends.INTERPRETED and backends.HAS_TRITON:
            for definition in DEFINITIONS:
                self._watch(definition.name)

    def _watch(self, name: str) -> None:
        stem = backends.triton_file(operator_of(name))
        if stem is None:
            return
        # Operators look up their launcher at every call (`ops/_define.py`).
        module = importlib.import_module(f"itm_kernels.triton.{stem}")
        launch: Callable[..., Any] = getattr(module, name)
        self.idle.add(name)

        @functools.wraps(launch)
        def noted(*arguments: Any, **options: Any) -> Any:
            self.idle.discard(name)
            return launch(*arguments, **options)

        setattr(module, name, noted)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.skipped:
            report.outcome = "failed"
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.idle and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.idle:
            terminalreporter.section("Triton launchers that never ran", red=True)
            terminalreporter.line(", ".join(sorted(self.idle)))
