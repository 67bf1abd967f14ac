"""Run a catalog in a process of its own: it needs memory that must be freed, and its death must not stop the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    failed: Mapping[str, str] = field(default_factory=dict)
    """By name that the run was for, and by name of any other image that failed, the reason."""
    error: str | None = None
    """Why the run as a whole failed."""
    stopped: bool = False
    """True: it ended early because the server ends."""

    def reason(self, name: str) -> str | None:
        """Return why a name that the run was for failed; None: it did not."""
        return self.error if self.error is not None else self.failed.get(name)


class Runner(Protocol):
    """Runs catalogs."""

    async def run(self, file: Path, names: Collection[str], whole: bool, stop: asyncio.Event) -> Outcome:
        """Run the images of these names, or the ``whole`` catalog for them. End after the present image on ``stop``."""


@dataclass(frozen=True)
class Child:
    """Runs ``command`` for each run, with a request on stdin; the end of stdin tells it to stop.

    So it also stops, after the present image, if the server is killed.
    """

    command: Sequence[str]
    options: Mapping[str, Any]
    """Added to each request: farm, number of processes."""

    async def run(self, file: Path, names: Collection[str], whole: bool, stop: asyncio.Event) -> Outcome:
        pipe = asyncio.subprocess.PIPE
        try:
            # A session of its own: Ctrl-C on a terminal is for the server, which stops it in order.
            process = await asyncio.create_subprocess_exec(
                *self.command, stdin=pipe, stdout=pipe, start_new_session=True
            )
        except OSError as error:
            return Outcome(error=f"run cannot be started, {error.strerror}")
        assert process.stdin is not None and process.stdout is not None
        request = {"file": str(file), "names": sorted(names), "whole": whole, **self.options}
        reading, stopping = asyncio.ensure_future(process.stdout.read()), asyncio.ensure_future(stop.wait())
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            process.stdin.close()
        return _outcome(await reading, await process.wait())


def _outcome(answer: bytes, status: int) -> Outcome:
    try:
        return Outcome(**json.loads(answer))
    except (ValueError, TypeError):
        return Outcome(error=f"run ended with status {status} and without a result")
