"""Parse the push notifications of registries: distribution, Harbor, Quay, GHCR (GitHub's webhooks) and zot.

Everything in a notification is untrusted, also if its secret is right: names are checked by the grammar of
registries, and anything else in it is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from layerfarm.jobs.errors import LimitExceeded, MalformedDocument
from layerfarm.worker.catalog.names import is_in_registry

EVENTS: Final = 1000
"""Maximum number of events, or tags, in one notification."""
_LONGEST_REPOSITORY: Final = 255


@dataclass(frozen=True)
class Push:
    """One tag that was pushed."""

    repository: str
    """Its path in the registry, without the host."""
    tag: str


@dataclass(frozen=True)
class Event:
    """One event of a notification that pushed tags."""

    pushes: tuple[Push, ...]
    id: str | None
    """Digest that is equal for the same event only; None: the registry's events cannot be told apart."""


@dataclass(frozen=True)
class Notification:
    """The content of one request."""

    events: tuple[Event, ...]
    ignored: int
    """Number of other events: pulls, deletions, blobs, manifests without a tag, and invalid names."""


def parse(kind: str, headers: Mapping[str, str], body: bytes) -> Notification:
    """Parse a notification; ``kind``: a key of :data:`KINDS`; ``headers``: by names in lower case.

    Raises:
        MalformedDocument: the body is not a JSON object, or not a notification of this kind of registry.
        LimitExceeded: it has more than :data:`EVENTS` events or tags.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedDocument("notification is not JSON") from error
    if not isinstance(document, dict):
        raise MalformedDocument("notification is not a JSON object")
    if not any(name in document or name in headers for name in _MARKS[kind]):
        raise MalformedDocument(f"not a notification of {kind}: it has no {' or '.join(_MARKS[kind])}")
    events, ignored, number = [], 0, 0
    for raw in KINDS[kind](_Fields(document), headers):
        number += max(1, len(raw.tags))
        if number > EVENTS:
            raise LimitExceeded(f"notification has more than {EVENTS} events")
        pushes = tuple(Push(raw.repository, tag) for tag in dict.fromkeys(raw.tags) if _is_valid(raw.repository, tag))
        if pushes:
            events.append(Event(pushes, _identity(kind, raw, body) if raw.has_id else None))
        else:
            ignored += 1
    return Notification(tuple(events), ignored)


@dataclass(frozen=True)
class _Raw:
    """One event, not checked."""

    repository: str = ""
    tags: tuple[str, ...] = ()
    id: str | None = None
    """None: only the notification as a whole identifies it."""
    has_id: bool = True


_OTHER: Final = _Raw()
"""An event that is not the push of a tag."""


class _Fields:
    """Reads the fields of untrusted JSON; a missing field, or one of another type, is empty."""

    def __init__(self, value: Any) -> None:
        self._value = value if isinstance(value, dict) else {}

    def text(self, *path: str) -> str:
        """Return the string at ``path``."""
        found = self.at(*path[:-1])._value.get(path[-1])
        return found if isinstance(found, str) else ""

    def at(self, *path: str) -> _Fields:
        """Return the object at ``path``."""
        found = self
        for name in path:
            found = _Fields(found._value.get(name))
        return found

    def items(self, *path: str) -> list[Any]:
        """Return the items of the array, or the keys of the object, at ``path``."""
        found = self.at(*path[:-1])._value.get(path[-1])
        return list(found) if isinstance(found, list | dict) else []


def _distribution(body: _Fields, headers: Mapping[str, str]) -> Iterator[_Raw]:
    """``application/vnd.docker.distribution.events.v2+json``, also of GitLab's registry.

    A blob, and a manifest pushed by its digest, has no tag.
    """
    for item in body.items("events"):
        event = _Fields(item)
        if event.text("action") != "push":
            yield _OTHER
            continue
        target = event.at("target")
        yield _Raw(target.text("repository"), _tags(target.text("tag")), event.text("id") or None)


def _harbor(body: _Fields, headers: Mapping[str, str]) -> Iterator[_Raw]:
    """Harbor's "Default" payload, and its "CloudEvents" payload."""
    is_event = bool(body.text("specversion"))
    if body.text("type") not in ("PUSH_ARTIFACT", "harbor.artifact.pushed"):
        yield _OTHER
        return
    data = body.at("data" if is_event else "event_data")
    repository = data.at("repository")
    name = repository.text("repo_full_name") or f"{repository.text('namespace')}/{repository.text('name')}"
    # The "tag" of a manifest without one is the digest.
    tags = tuple(tag for item in data.items("resources") for tag in _tags(_Fields(item).text("tag")))
    yield _Raw(name, tags, body.text("id") or None if is_event else None)


def _quay(body: _Fields, headers: Mapping[str, str]) -> Iterator[_Raw]:
    """Quay's "Push to Repository". Two pushes of one tag give the same text, so no repetition can be recognized."""
    name = body.text("repository") or f"{body.text('namespace')}/{body.text('name')}"
    yield _Raw(name, tuple(tag for tag in body.items("updated_tags") if isinstance(tag, str)), has_id=False)


def _github(body: _Fields, headers: Mapping[str, str]) -> Iterator[_Raw]:
    """GitHub's event ``registry_package`` or ``package`` of a container; its header with an id is not signed."""
    package = body.at("registry_package") if body.items("registry_package") else body.at("package")
    version = package.at("package_version")
    if body.text("action") not in ("published", "updated"):
        yield _OTHER
        return
    # "ghcr.io/OWNER/NAME:TAG"; for a manifest without a tag the tag is empty.
    host, _, rest = version.text("package_url").partition("/")
    repository, _, tag = rest.rpartition(":")
    if not host.endswith("ghcr.io") and package.text("package_type").lower() != "container":
        yield _OTHER
        return
    yield _Raw(repository.lower(), _tags(version.text("container_metadata", "tag", "name") or tag))


def _zot(body: _Fields, headers: Mapping[str, str]) -> Iterator[_Raw]:
    """CloudEvents over HTTP, in binary or structured mode; the start of their type is configurable."""
    if body.text("specversion"):
        kind, identity, source, data = body.text("type"), body.text("id"), body.text("source"), body.at("data")
    else:
        kind, identity, source = (headers.get(f"ce-{name}", "") for name in ("type", "id", "source"))
        data = body
    if not kind.endswith(".image.updated"):
        yield _OTHER
        return
    yield _Raw(data.text("name"), _tags(data.text("reference")), f"{source} {identity}" if identity else None)


KINDS: Final[dict[str, Callable[[_Fields, Mapping[str, str]], Iterator[_Raw]]]] = {
    "distribution": _distribution,
    "harbor": _harbor,
    "quay": _quay,
    "github": _github,
    "zot": _zot,
}
"""By the last component of the endpoint."""
_MARKS: Final = {
    "distribution": ("events",),
    "harbor": ("type",),
    "quay": ("repository",),
    "github": ("x-github-event", "sender", "zen"),
    "zot": ("specversion", "ce-type"),
}
"""Fields and headers of which every notification of a registry has one, also its other events and its test, as GitHub's
ping. A body without them was sent by something else. Harbor's test has neither body nor secret, and ignores the answer
(``policyHTTPTest`` in goharbor/harbor)."""


def _tags(tag: str) -> tuple[str, ...]:
    return (tag,) if tag else ()


def _is_valid(repository: str, tag: str) -> bool:
    return len(repository) <= _LONGEST_REPOSITORY and is_in_registry(repository, tag)


def _identity(kind: str, event: _Raw, body: bytes) -> str:
    """Return a digest of the event's id, or of the whole notification, and of its tags: two events may have one id."""
    known = body if event.id is None else event.id.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(known)
    for part in (kind, event.repository, *event.tags):
        digest.update(b"\0" + part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]
