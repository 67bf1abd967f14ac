"""An ordinary user for tests: with a home, and functions or programs that run as this user. Without root, it is the
user who runs the tests.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UID, GID = (54321, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
"""Ids that are not in /etc/passwd; without root, those of the user who runs the tests."""


_AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups") if os.geteuid() == 0 else ()


class OrdinaryUser:
    """A user without rights except over their own files; ``home`` is an empty directory that others can enter."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def own(self, path: Path) -> None:
        """Make the user the owner of ``path`` and all below."""
        if os.geteuid() != 0:
            return
        for directory, _, files in os.walk(path):
            for name in (".", *files):
                os.chown(os.path.join(directory, name), UID, GID, follow_symlinks=False)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a process of the user, and return its result; its exception is raised here."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(self._child(function, writer))
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            answer = stream.read()
        os.waitpid(child, 0)
        value, error, text = pickle.loads(answer)
        if error is not None:
            raise error from RuntimeError(text)
        return value

    def _child(self, function: Callable[[], Any], writer: int) -> int:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(GID, GID, GID)
            os.setresuid(UID, UID, UID)
        os.chdir(self.home)
        tempfile.tempdir = str(self.home)
        answer: tuple[Any, BaseException | None, str] = (None, None, "")
        try:
            answer = (function(), None, "")
        except BaseException as error:
            answer = (None, error, traceback.format_exc())
        with os.fdopen(writer, "wb") as out:
            pickle.dump(answer, out)
        return 0

    def run(
        self, *command: str | Path, check: bool = True, within: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the user, in their home; ``within`` a program that root runs around it."""
        variables = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": str(self.home), "TMPDIR": str(self.home)}
        done = subprocess.run(
            [*within, *_AS_USER, *map(str, command)],
            cwd=self.home,
            env=variables | {"XDG_RUNTIME_DIR": str(self.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done


@contextmanager
def ordinary_user() -> Iterator[OrdinaryUser]:
    """His home is not below pytest's own directories, which only their owner may enter."""
    home = Path(tempfile.mkdtemp(prefix="layerfarm-user-"))
    try:
        os.chmod(home, 0o755)
        if os.geteuid() == 0:
            os.chown(home, UID, GID)
        yield OrdinaryUser(home)
    finally:
        shutil.rmtree(home)
