"""One run of a catalog for ``layerfarm catalog serve``: ``python -m layerfarm.worker.cli.catalog_part``.

stdin has a request, one line of JSON, and its end stops the run after the present image. The outcome is printed on
stdout as JSON, the log on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfarm.worker.import_path import ours_first

if TYPE_CHECKING:
    from layerfarm.worker.catalog.backends import Backend, Ended, Task, Watcher


def main() -> int:
    """Read the request, run it, and print the outcome."""
    ours_first()
    answer = os.fdopen(os.dup(1), "w")
    # Whatever else is printed goes to the log.
    os.dup2(2, 1)
    request = json.loads(_line())
    stop = threading.Event()
    threading.Thread(target=_wait, args=(stop,), daemon=True).start()
    with answer:
        json.dump(_run(request, stop), answer)
    return 0


def _line() -> bytes:
    # Without sys.stdin: a process that is forked while a thread waits in it would wait for its lock for ever.
    line = b""
    while not line.endswith(b"\n") and (part := os.read(0, 65536)):
        line += part
    return line


def _wait(stop: threading.Event) -> None:
    while os.read(0, 1):
        pass
    stop.set()


def _run(request: dict[str, Any], stop: threading.Event) -> dict[str, Any]:
    from layerfarm.jobs.errors import LayerfarmError
    from layerfarm.worker.catalog.part import Names
    from layerfarm.worker.catalog.running import carry_out, failures
    from layerfarm.worker.cli.catalog_cmd import How, working
    from layerfarm.worker.monitoring.logs import configure_logs

    configure_logs()
    names = Names(frozenset(request["names"]))
    how = How(request["farm"], request["at_once"], request["processes"], "none")
    try:
        with working(Path(request["file"]), how, view=_Log(stop)) as work:
            work.backend = _Until(work.backend, stop)
            images = carry_out(work, None if request["whole"] else names)
            return {"failed": failures(work, images, sorted(names.given))}
    except _Stopped:
        return {"stopped": True}
    except LayerfarmError as error:
        return {"error": str(error)}


class _Stopped(BaseException):
    """The run ends, because the server does."""


class _Until:
    """A backend that begins no task after a stop, and then ends the run; those that run end first."""

    def __init__(self, backend: Backend, stop: threading.Event) -> None:
        self._backend = backend
        self._stop = stop

    def run(self, tasks: Iterable[Task], ended: Ended, watcher: Watcher) -> None:
        self._backend.run(takewhile(lambda _: not self._stop.is_set(), tasks), ended, watcher)
        if self._stop.is_set():
            raise _Stopped


class _Log:
    """A view that logs, and on a stop ends the run between two steps, or two images of a transfer."""

    def __init__(self, stop: threading.Event) -> None:
        import structlog

        self._log = structlog.get_logger()
        self._stop = stop
        self._step = ""

    def step(self, name: str, total: int) -> None:
        self._log.info("step", step=name, images=total)
        self._step = name
        self._check()

    def working(self, name: str, what: str) -> None:
        if what == "push":  # begins
            self._check()

    def ended(self, name: str, error: str | None, nbytes: int = 0) -> None:
        if self._step == "fetch":
            self._check()

    def notice(self, text: str) -> None:
        self._log.info(text)

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


if __name__ == "__main__":
    sys.exit(main())
