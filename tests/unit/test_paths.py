"""Errors about the operator's own paths are the same on every Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.paths import is_directory
from tests.ordinary_user import ordinary_user


def test_a_directory_that_may_not_be_looked_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    assert is_directory(tmp_path) and not is_directory(tmp_path / "none") and not is_directory(tmp_path / "none/below")
    (tmp_path / "file").touch()
    assert not is_directory(tmp_path / "file") and not is_directory(tmp_path / "file/below")
    with ordinary_user() as user:
        closed = user.home / "closed"
        closed.mkdir()
        (closed / "inside").mkdir()
        user.own(closed)
        closed.chmod(0)
        with pytest.raises(PermissionError):
            user.call(lambda: is_directory(closed / "inside"))
        closed.chmod(0o700)
