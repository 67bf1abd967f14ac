"""What every test run has in common: a test that could not run is said loudly, and may fail the run.

A test that needs a program or a right that the machine lacks calls ``pytest.skip`` (or the ``program``
fixture does); nothing else skips. The list at the end names each of them, and with
``LAYERFARM_REQUIRE_ALL`` set, as in CI, the run fails if it is not empty.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on the machine and on who else uses it: never a reason to fail.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_SYSTEM_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))
_could_not_run: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program of the machine; the test cannot run without it."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH)
        if path is None:
            pytest.skip(f"program not installed: {name}")
        return path

    return find


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _could_not_run.append((report.nodeid, _reason(report)))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _could_not_run.append((report.nodeid, _reason(report)))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _could_not_run:
        terminalreporter.section(f"{len(_could_not_run)} TESTS COULD NOT RUN", sep="!", red=True, bold=True)
        for nodeid, reason in sorted(set(_could_not_run)):
            terminalreporter.line(f"{nodeid}: {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _could_not_run and os.environ.get("LAYERFARM_REQUIRE_ALL") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
