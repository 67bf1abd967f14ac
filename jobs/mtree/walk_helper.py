"""The processes that walk directories for :mod:`layerfarm.jobs.mtree.walkers`."""

from __future__ import annotations

import pickle
import socket
import sys

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.fs import Widened
from layerfarm.jobs.helpers import forked
from layerfarm.jobs.mtree.walk import Part, Pending
from layerfarm.jobs.mtree.walkers import walk_some


def _serve(root: int, connection: int) -> None:
    # The caller widens modes and restores them. Two processes would record each other's widened modes.
    Widened.forbid()
    with socket.socket(fileno=connection) as caller, caller.makefile("rb") as requests:
        clock = pickle.load(requests)
        answer: tuple[Part, list[Pending]] | None = None  # the greeting
        while True:
            caller.sendall(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
            try:
                directories, limit = pickle.load(requests)
            except EOFError:  # the caller has ended
                return
            try:
                answer = walk_some(root, clock, directories, limit)
            except LayerfarmError:
                answer = None


def _main(root: int, *connections: int) -> None:
    forked(connections, lambda number, connection: _serve(root, connection))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
