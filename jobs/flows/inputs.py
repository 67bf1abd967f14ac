"""Leases on the images of a request, taken before any worker reads the request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.requests import ImageRef, RepackRequest
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.reachability import reachable


def images_of(request: Request) -> Iterator[ImageRef]:
    """Yield every image that the request names, to be read or written."""
    return (value for value in _within(request) if isinstance(value, ImageRef))


def _within(whole: Any) -> Iterator[Any]:
    """Yield the value and every nested value, of models or of parsed JSON."""
    pending = [whole]
    while pending:
        value = pending.pop()
        yield value
        if isinstance(value, BaseModel):
            pending += vars(value).values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()


def stores_of(request: Request, policy: Policy | None = None) -> list[Path]:
    """Return the layouts that the request names; with a policy, only allowed ones."""
    found = set()
    for image in images_of(request):
        with suppress(LayerfarmError):
            found.add(policy.check_store(image.store) if policy is not None else image.store)
    return sorted(found)


def stores_in(request: str, policy: Policy) -> list[Path]:
    """Return the allowed layouts named in a request that does not parse (of another version, or forged)."""
    try:
        parsed = json.loads(request)
    except (ValueError, RecursionError):
        return []
    found = set()
    for value in _within(parsed):
        store = value.get("store") if isinstance(value, dict) else None
        if isinstance(store, str) and "\0" not in store:
            with suppress(LayerfarmError, OSError):
                found.add(policy.check_store(Path(store)))
    return sorted(found)


def lease_inputs(job_id: str, request: Request, seconds: float) -> None:
    """Lease all blobs of the request's images to the job, for ``seconds``.

    The job resolves its tags when it begins; a lease on what a tag named before is harmless. The base of a repack,
    which only the bundle names, may have no tag at all. If a store cannot be read or written from here (a client of the
    farm need not have it), the worker takes the lease when the job begins, or reports the error.
    """
    for image in images_of(request):
        with suppress(LayerfarmError, OSError):
            layout = Layout.open(image.store)
            held = reachable(layout, [*layout.find(image.tag), *_base_of(request, image)])
            if held:
                Leases(layout.path).add(job_id, seconds, held)


def release(job_id: str, stores: Iterable[Path]) -> None:
    """Release the leases of an ended job in those of these layouts that can be written."""
    for store in stores:
        with suppress(LayerfarmError, OSError):
            Leases(store).release(job_id)


def _base_of(request: Request, image: ImageRef) -> list[Descriptor]:
    if not isinstance(request, RepackRequest) or image != request.image:
        return []
    from layerfarm.jobs.image.bundle import Bundle

    with suppress(LayerfarmError, OSError):
        return [*Bundle.open(request.bundle).walk[-1:]]
    return []
