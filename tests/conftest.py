"""Set-up of every test run: a test that could not run is reported at the end, and may fail the run.

A test that needs a program or a right that the machine lacks calls ``pytest.skip`` (or the ``program``
fixture does); nothing else skips. The list at the end names each of them, and with
``LAYERFARM_REQUIRE_ALL`` set, as in CI, the run fails if it is not empty.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests import started
from tests.examples import examples
from tests.rights import takes_root

# The time of an example depends on the load of the machine: never a reason to fail.
settings.register_profile(
    "untimed", deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

# A shell that puts pytest into the background has it ignore Ctrl-C, nohup(1) has it ignore SIGHUP; what tests start
# would inherit that.
for _signal in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal is signal.SIGINT else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

_SYSTEM_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))
_UNIT = Path(__file__).with_name("unit")
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


@pytest.fixture(scope="session")
def as_root() -> None:
    """For a test of what only root can make or see, where an ordinary user would not even be refused."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Directories without an end. ``mktemp`` for each test would read the names of all that are there."""
    place = tmp_path_factory.mktemp("caches")
    return (place / str(number) for number in count())


@pytest.fixture(autouse=True)
def _cache_of_its_own(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache, so that tests share no result and nothing is left in the home directory."""
    cache = next(_caches)
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """Restore the configuration of the log after each test."""
    yield
    structlog.reset_defaults()


started.note_all()


@pytest.fixture(autouse=True)
def _what_a_test_starts_ends_with_it() -> Iterator[None]:
    """Programs that a fixture of a wider scope has started are not those of the test."""
    with started.ended():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of each directory over the run, so that tests that wait run beside tests that compute.

    The unit tests are last: they are short, and the processes of xdist end together.
    """
    files: dict[Path, dict[Path, None]] = {}
    for item in items:
        files.setdefault(item.path.parent, {})[item.path] = None
    place = {
        path: (_UNIT in path.parents, number / len(paths))
        for paths in files.values()
        for number, path in enumerate(paths)
    }
    items.sort(key=lambda item: (*place[item.path], item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.excinfo is not None and os.geteuid() != 0:
        what = takes_root(call.excinfo.value)
        if what is not None:
            path, line, _ = item.location
            report.outcome = "skipped"
            report.longrepr = (path, line or 0, f"Skipped: needs root: {what}")
    return report


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
