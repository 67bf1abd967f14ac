"""Each job as stages, the typed requests and results, and the registry that both runners look flows up in."""

from __future__ import annotations

from typing import Any

from jobs.errors import RequestError
from jobs.flows.analyze import ANALYZE
from jobs.flows.base import Flow, Request
from jobs.flows.build import BUILD
from jobs.flows.flatten import FLATTEN
from jobs.flows.manifest import MANIFEST
from jobs.flows.rebase import REBASE, REBASE_CHECK
from jobs.flows.rechunk import RECHUNK
from jobs.flows.recompress import RECOMPRESS
from jobs.flows.repack import REPACK
from jobs.flows.squash import SQUASH
from jobs.flows.strip import STRIP
from jobs.flows.unpack import UNPACK
from jobs.flows.verify import VERIFY

_ALL: tuple[Flow[Any], ...] = (
    ANALYZE,
    BUILD,
    FLATTEN,
    MANIFEST,
    REBASE,
    REBASE_CHECK,
    RECHUNK,
    RECOMPRESS,
    REPACK,
    SQUASH,
    STRIP,
    UNPACK,
    VERIFY,
)

FLOWS: dict[str, Flow[Any]] = {flow.name: flow for flow in _ALL}
"""By name, the ``kind`` of a job."""


def flow_of(request: Request) -> Flow[Any]:
    """The flow that serves requests of this type.

    Raises:
        RequestError: no flow does.
    """
    for flow in FLOWS.values():
        if flow.request is type(request):
            return flow
    raise RequestError("no flow serves a request of this type", where=type(request).__name__)
