"""How a job ended is also written beside its store, and counts when Redis has forgotten it.

See ``layerfarm.jobs.store.retention``.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.inputs import stores_of
from layerfarm.jobs.store.retention import read_ending, write_ending
from layerfarm.worker.model import Ending

_log = structlog.get_logger()


class Endings:
    """Those in the stores that this worker may use."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def remember(self, job_id: str, request: Request, ending: Ending) -> None:
        """Write it down. Where that is not possible, Redis alone knows it."""
        for store in self._store_of(request):
            try:
                write_ending(store, job_id, ending.model_dump_json())
            except (LayerfarmError, OSError) as error:
                _log.warning("could not write down how the job ended", error=str(error))

    def recall(self, job_id: str, request: Request, retries: int) -> Ending | None:
        """How this try of the job ended, though Redis does not say so. None: it has not, as far as is known."""
        for store in self._store_of(request):
            with suppress(LayerfarmError, OSError, ValidationError):
                text = read_ending(store, job_id)
                ending = None if text is None else Ending.model_validate_json(text)
                if ending is not None and ending.retries == retries:
                    return ending
        return None

    def _store_of(self, request: Request) -> list[Path]:
        """One of those that the request names, the same each time; none if it names none."""
        return stores_of(request, self._policy)[:1]
