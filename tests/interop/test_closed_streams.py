"""Commands whose stdout or stderr is closed or full: the work is done, and the exit code says what is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from tests.interop.tools import LAYERFARM
from tests.unit.image.images import image

BUILD = "build --rootfs tree --image s:new"
ERRORS = {">&-": "Bad file descriptor", ">/dev/full": "No space left on device"}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("content")
    image(Layout.create(tmp_path / "s"))
    return tmp_path


def shell(place: Path, command: str, redirection: str) -> tuple[int, str, str]:
    script = f"exec {LAYERFARM} {command} {redirection}"
    done = subprocess.run(["sh", "-c", script], cwd=place, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["tag --image s:t new", "unpack --rootless --image s:t b", "new --image s:new"])
def test_a_command_without_output_succeeds(layout: Path, command: str, redirection: str) -> None:
    assert shell(layout, command, redirection) == (0, "", "")


@pytest.mark.parametrize("redirection", ERRORS)
@pytest.mark.parametrize("command", ["ls --layout s", "stat --json --image s:t", "--version", "mtree tree", BUILD])
def test_output_that_cannot_be_written_is_exit_code_1_and_one_line(
    layout: Path, command: str, redirection: str
) -> None:
    assert shell(layout, command, redirection) == (1, "", f"layerfarm: {ERRORS[redirection]}: standard output\n")
    assert shell(layout, command, redirection + " 2>&-") == (1, "", "")
    if command == BUILD:
        assert shell(layout, "ls --layout s", "") == (0, "new\nt\n", "")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("command", ["--verbose tag --image s:t new", f"--verbose {BUILD} --progress=plain"])
def test_messages_that_cannot_be_written_are_exit_code_1_after_the_work(
    layout: Path, command: str, redirection: str
) -> None:
    assert shell(layout, command, redirection)[0] == 1
    assert shell(layout, "ls --layout s", "") == (0, "new\nt\n", "")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("ls --layout nowhere", 1), ("ls", 2), ("no-such-command", 2)])
def test_an_error_keeps_its_exit_code_when_it_cannot_be_printed(
    layout: Path, command: str, code: int, redirection: str
) -> None:
    assert shell(layout, command, redirection) == (code, "", "")


def test_no_file_takes_the_place_of_a_closed_stream(layout: Path) -> None:
    """Blobs would be opened with the numbers 1 and 2, and messages would be written into them."""
    assert shell(layout, f"--verbose {BUILD}", "<&- >&- 2>&-")[0] == 1
    assert shell(layout, "validate --layout s", "")[0] == 0
