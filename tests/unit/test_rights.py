"""Tests that could not run without root, and those that stay failures."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

from layerfarm.jobs.errors import RootfsError
from layerfarm.jobs.fs import Rootfs
from tests.rights import takes_root


def _raised(call: object, *arguments: object) -> BaseException:
    try:
        call(*arguments)  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _refused() -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_refusal_of_the_test_itself_needs_root() -> None:
    assert takes_root(_raised(_refused)) == "_refused"
    assert takes_root(subprocess.CalledProcessError(1, ["/usr/bin/mount", "-t", "tmpfs"])) == "mount"


def test_operations_that_layerfarm_says_need_root_do() -> None:
    hint = "only root can restore owners; other users unpack with --rootless"
    assert takes_root(RootfsError("owner of the directory cannot be set", hint=hint)) == "unpacking with owners"


def test_everything_else_stays_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Raised by layerfarm, or for want of another right, or of a program that is no root's.
    assert takes_root(_raised(Rootfs, tmp_path / "file")) is None
    assert takes_root(_raised(os.mkdir, tmp_path / "file")) is None
    assert takes_root(PermissionError(errno.EACCES, "Permission denied")) is None
    assert takes_root(subprocess.CalledProcessError(1, ["umoci", "unpack"])) is None
    assert takes_root(AssertionError("1 != 2")) is None
