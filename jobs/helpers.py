"""Helper processes of one unit of work: connected to it by sockets, and ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress


@contextmanager
def started(module: str, *fds: int) -> Iterator[None]:
    """Run ``python -m module FD…``, with these descriptors, which ends when its connections are closed.

    It is killed if the block is left by an error. Not forked: the caller may have threads.

    Raises:
        OSError: it cannot be started.
    """
    # -P: no module is taken from the working directory. A group of its own: Ctrl-C reaches the caller alone.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=fds,
        process_group=0,
    ) as process:
        try:
            yield
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def forked(connections: Sequence[int], serve: Callable[[int, int], None]) -> None:
    """Call ``serve(number, connection)`` in a child process for each connection, and wait for all of them."""
    for number, connection in enumerate(connections):
        if os.fork() == 0:
            for other in connections:
                if other != connection:
                    os.close(other)
            serve(number, connection)
            return
    # The caller ends this process; without the caller, the helpers end by themselves.
    for connection in connections:
        os.close(connection)
    for _ in connections:
        os.wait()
