"""Each job as stages, the typed requests and results, and the registry of flows for both runners."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Flow, Request

_OWN: Final = {
    "analyze": "analyze.ANALYZE",
    "build": "build.BUILD",
    "flatten": "flatten.FLATTEN",
    "manifest": "manifest.MANIFEST",
    "rebase": "rebase.REBASE",
    "rebase-check": "rebase.REBASE_CHECK",
    "rechunk": "rechunk.RECHUNK",
    "recompress": "recompress.RECOMPRESS",
    "repack": "repack.REPACK",
    "squash": "squash.SQUASH",
    "strip": "strip.STRIP",
    "unpack": "unpack.UNPACK",
    "verify": "verify.VERIFY",
}
"""The module of each of layerfarm's own flows, and the flow's name in it."""


class Flows(MutableMapping[str, Flow[Any]]):
    """Flows by name, each imported on first use: a command in a shell waits only for the one that it runs."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow[Any] | None] = dict.fromkeys(_OWN)

    def __getitem__(self, name: str) -> Flow[Any]:
        flow = self._flows[name]
        if flow is None:
            module, _, attribute = _OWN[name].partition(".")
            flow = getattr(importlib.import_module(f"layerfarm.jobs.flows.{module}"), attribute)
            self._flows[name] = flow
        return flow

    def __setitem__(self, name: str, flow: Flow[Any]) -> None:
        self._flows[name] = flow

    def __delitem__(self, name: str) -> None:
        del self._flows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._flows)

    def __len__(self) -> int:
        return len(self._flows)

    def import_all(self) -> None:
        """Import all flows: before a fork, or before this process loses access to its own modules."""
        for name in self:
            self[name]


FLOWS = Flows()
"""By name, the ``kind`` of a job."""


def flow_of(request: Request) -> Flow[Any]:
    """Return the flow that serves requests of this type.

    Raises:
        RequestError: no flow does.
    """
    flow = FLOWS.get(request.kind)
    if flow is None or flow.request is not type(request):
        raise RequestError("no flow serves a request of this type", where=type(request).__name__)
    return flow
