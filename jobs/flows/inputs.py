"""What a request reads, told from the request alone: taken under a lease before any worker has seen it."""

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
from layerfarm.jobs.image import Bundle
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.reachability import reachable


def images_of(request: Request) -> Iterator[ImageRef]:
    """Every image that the request names, to be read or to be written."""
    return (value for value in _within(request) if isinstance(value, ImageRef))


def _within(whole: Any) -> Iterator[Any]:
    """The value, and each that stands in it at whatever depth, of models or of parsed JSON."""
    pending = [whole]
    while pending:
        value = pending.pop()
        yield value
        if isinstance(value, BaseModel):
            pending += [getattr(value, name) for name in type(value).model_fields]
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()


def stores_of(request: Request, policy: Policy | None = None) -> list[Path]:
    """The layouts that the request names; with a policy, those that it allows."""
    found = set()
    for image in images_of(request):
        with suppress(LayerfarmError):
            found.add(policy.check_store(image.store) if policy is not None else image.store)
    return sorted(found)


def stores_in(request: str, policy: Policy) -> list[Path]:
    """The layouts that a request names which cannot be read as one: of another version, or of a stranger.

    Only those that the policy allows: whatever else the text holds leads nowhere.
    """
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
    """Let the job hold all that the images of its request lead to now, for ``seconds``.

    A job takes what a tag names when it begins, so an image that gets another tag meanwhile is held in vain, and no
    harm done. The base of a repack, which only the bundle knows of, is what may have no tag at all.

    What cannot be seen or written from here (the client of a farm need not have the store) is left to the worker,
    which holds it from the beginning of the job, or says what is wrong.
    """
    for image in images_of(request):
        with suppress(LayerfarmError, OSError):
            layout = Layout.open(image.store)
            held = reachable(layout, [*layout.find(image.tag), *_base_of(request, image)])
            if held:
                Leases(layout.path).add(job_id, seconds, held)


def release(job_id: str, stores: Iterable[Path]) -> None:
    """The job has ended: what it held in these layouts is held no more, where it can be reached."""
    for store in stores:
        with suppress(LayerfarmError, OSError):
            Leases(store).release(job_id)


def _base_of(request: Request, image: ImageRef) -> list[Descriptor]:
    if not isinstance(request, RepackRequest) or image != request.image:
        return []
    with suppress(LayerfarmError, OSError):
        return [*Bundle.open(request.bundle).walk[-1:]]
    return []
