"""A test that could not run is reported at the end, and fails the run if everything must run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.large
ROOT = Path(__file__).parents[2]

LACKING = "def test_lacking(program):\n    program('no-such-program')\n"
RUNNING = "def test_running(program):\n    assert program('sh').endswith('/sh')\n"


def outcome(directory: Path, text: str, *options: str, everything: bool) -> tuple[int, str]:
    (directory / "test_probe.py").write_text(text)
    setting = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LAYERFARM_REQUIRE_ALL": "1" if everything else ""}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    # Its directories are its own: at its end, pytest removes what earlier runs have left in the shared one.
    command += ["--basetemp", str(directory / "base")]
    done = subprocess.run(
        [*command, *options, "--rootdir", str(directory), str(directory)],
        cwd=directory,
        env=setting,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_tests_without_their_program_are_listed_and_fail_only_where_all_must_run(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    for everything, code in ((False, 0), (True, 1)):
        got, out = outcome(tmp_path, LACKING + RUNNING, *options, everything=everything)
        assert got == code
        assert "1 TESTS COULD NOT RUN" in out
        assert "test_probe.py::test_lacking: Skipped: program not installed: no-such-program" in out


def test_a_module_that_skips_itself_is_listed_too(tmp_path: Path) -> None:
    text = f"import pytest\npytest.skip('no right to mount', allow_module_level=True)\n{RUNNING}"
    got, out = outcome(tmp_path, text + RUNNING, everything=True)
    assert got != 0
    assert "test_probe.py: Skipped: no right to mount" in out


def test_when_everything_ran_nothing_is_listed(tmp_path: Path) -> None:
    got, out = outcome(tmp_path, RUNNING, everything=True)
    assert got == 0
    assert "COULD NOT RUN" not in out
