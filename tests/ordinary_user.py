"""An ordinary user for tests: a home of his own, and functions or programs run as him. Without root, it is who runs
the tests.
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
"""Of nobody who is in /etc/passwd; without root, those who runs the tests."""


_AS_HIM = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups") if os.geteuid() == 0 else ()


class OrdinaryUser:
    """A user without any right but over what is his; ``home`` is an empty directory that others can enter."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def own(self, path: Path) -> None:
        """Give him ``path`` and all below."""
        if os.geteuid() != 0:
            return
        for directory, _, files in os.walk(path):
            for name in (".", *files):
                os.chown(os.path.join(directory, name), UID, GID, follow_symlinks=False)

    def call(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns in a process of his; what it raises is raised here."""
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
        """Run a program as him, in his home; ``within`` a program that root runs around it."""
        variables = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "HOME": str(self.home), "TMPDIR": str(self.home)}
        done = subprocess.run(
            [*within, *_AS_HIM, *map(str, command)],
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
