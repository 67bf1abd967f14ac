"""Notifications of registries: the recorded or documented payload of each, and payloads that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import LimitExceeded, MalformedDocument
from layerfarm.worker.catalog.serve.notifications import EVENTS, KINDS, Push, parse

PAYLOADS = Path(__file__).parent / "notifications"
ZOT = {"ce-type": "zotregistry.image.updated", "ce-id": "a1b2", "ce-source": "zotregistry.dev"}


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


@pytest.mark.parametrize(
    ("kind", "name", "pushes", "ignored"),
    [
        ("distribution", "distribution", [("team/web", "1.0")], 3),
        ("harbor", "harbor", [("harbor/alpine", "3.18")], 0),
        ("harbor", "harbor-cloudevents", [("harbor/alpine", "3.18")], 0),
        ("harbor", "harbor-untagged", [], 1),
        ("harbor", "harbor-deleted", [], 1),
        ("quay", "quay", [("dgangaia/test", "latest"), ("dgangaia/test", "1.2")], 0),
        ("quay", "quay-2013", [("devtable/ubuntu", "latest")], 0),
        ("github", "github", [("codertocat/hello-world", "1.4")], 0),
        ("github", "github-package", [("codertocat/hello-world", "1.4")], 0),
        ("github", "github-untagged", [], 1),
        ("github", "github-npm", [], 1),
        ("github", "github-ping", [], 1),
        ("zot", "zot", [("golang", "latest")], 0),
        ("zot", "zot-structured", [("golang", "latest")], 0),
    ],
)
def test_the_payload_of_each_registry(kind: str, name: str, pushes: list[tuple[str, str]], ignored: int) -> None:
    found = parse(kind, ZOT if name == "zot" else {}, payload(name))
    assert [push for event in found.events for push in event.pushes] == [Push(*each) for each in pushes]
    assert found.ignored == ignored


def identity(kind: str, body: bytes, headers: dict[str, str] | None = None) -> str | None:
    (event,) = parse(kind, headers or {}, body).events
    return event.id


def changed(name: str, **fields: Any) -> bytes:
    return json.dumps(json.loads(payload(name)) | fields).encode()


def test_an_event_has_the_same_id_again_and_another_one_has_another() -> None:
    envelope = json.loads(payload("distribution"))
    again = [envelope["events"][1], envelope["events"][1] | {"id": "another"}]
    first, second = parse("distribution", {}, json.dumps({"events": again}).encode()).events
    assert first.id == identity("distribution", payload("distribution")) != second.id
    assert identity("harbor", payload("harbor")) == identity("harbor", payload("harbor"))
    assert identity("harbor", payload("harbor")) != identity("harbor", changed("harbor", occur_at=1680501894))
    cloud = changed("harbor-cloudevents", requestid="another request")
    assert identity("harbor", cloud) == identity("harbor", payload("harbor-cloudevents"))
    assert identity("github", payload("github")) != identity("github", changed("github", action="updated"))
    assert identity("zot", payload("zot"), ZOT) == identity("zot", payload("zot-structured"))
    assert identity("zot", payload("zot"), ZOT | {"ce-id": "c3d4"}) != identity("zot", payload("zot"), ZOT)
    # Two pushes of one tag give the same payload.
    assert identity("quay", payload("quay")) is None


@pytest.mark.parametrize("identity", [None, "", "the same"])
def test_events_of_one_notification_are_told_apart_even_with_one_id(identity: str | None) -> None:
    events = [{"id": identity, "action": "push", "target": {"repository": "a", "tag": tag}} for tag in ("1", "2", "1")]
    first, second, third = parse("distribution", {}, json.dumps({"events": events}).encode()).events
    assert first.id == third.id != second.id


def test_the_types_of_zot_may_have_another_prefix_and_other_types_are_no_pushes() -> None:
    assert parse("zot", ZOT | {"ce-type": "com.example.registry.image.updated"}, payload("zot")).events
    for kind in ("zotregistry.image.deleted", "zotregistry.image.lint_failed", "zotregistry.repository.created", ""):
        assert parse("zot", ZOT | {"ce-type": kind}, payload("zot")).ignored == 1


@pytest.mark.parametrize(
    ("repository", "tag"),
    [
        ("../../etc", "1"),
        ("/team/web", "1"),
        ("team//web", "1"),
        ("team/web\n", "1"),
        ("team/web", "1\x1b[2J"),
        ("team/web", "../1"),
        ("team/web", "a" * 129),
        ("team/" + "w" * 251, "1"),
        ("Team/web", "1"),
        ("team/w*b", "*"),
        ("", "1"),
    ],
)
def test_names_that_are_none_are_ignored(repository: str, tag: str) -> None:
    event = {"id": "1", "action": "push", "target": {"repository": repository, "tag": tag}}
    found = parse("distribution", {}, json.dumps({"events": [event]}).encode())
    assert (found.events, found.ignored) == ((), 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"[]", b"null", b"1" * 5000, b'"text"', b"[" * 100_000, b'{"events":', b'{"a": "\\ud800"}x'],
    ids=lambda body: body[:10].decode("latin-1"),
)
def test_a_body_that_is_no_object_is_malformed(kind: str, body: bytes) -> None:
    with pytest.raises(MalformedDocument):
        parse(kind, {}, body)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [b"{}", b'{"a": {"events": [], "type": "PUSH_ARTIFACT"}}'])
def test_a_body_that_names_nothing_is_of_no_registry(kind: str, body: bytes) -> None:
    with pytest.raises(MalformedDocument, match=f"not a notification of {kind}: it has no "):
        parse(kind, {}, body)


@pytest.mark.parametrize(("kind", "name"), [("distribution", "harbor"), ("harbor", "quay"), ("zot", "distribution")])
def test_a_notification_of_another_registry_is_not_taken(kind: str, name: str) -> None:
    with pytest.raises(MalformedDocument, match=f"not a notification of {kind}"):
        parse(kind, {}, payload(name))


def test_an_event_of_github_may_have_no_sender() -> None:
    assert parse("github", {"x-github-event": "check_run"}, b'{"action": "created"}').ignored == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [None, 7, "text", [], [[]], {}, {"events": 1}, [None, 1, "x", {}], "\ud800"])
def test_fields_of_any_type_are_ignored(kind: str, value: Any) -> None:
    """Each field of each payload is replaced, on every level."""
    names = [name for name in PAYLOADS.iterdir() if name.stem.startswith(kind)]
    for path in names:
        document = json.loads(path.read_bytes())
        for where in _places(document):
            parse(kind, ZOT, json.dumps(_replaced(document, where, value)).encode())


def _places(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    found = [(*above, key) for key in keys]
    return found + [deeper for place in found for deeper in _places(document[place[-1]], place)]


def _replaced(document: Any, where: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    return copy


def test_too_many_events_or_tags_are_refused() -> None:
    tags = [f"t{number}" for number in range(EVENTS)]
    (event,) = parse("quay", {}, changed("quay", updated_tags=tags)).events
    assert len(event.pushes) == EVENTS
    with pytest.raises(LimitExceeded):
        parse("quay", {}, changed("quay", updated_tags=[*tags, "one more"]))
    with pytest.raises(LimitExceeded):
        parse("distribution", {}, json.dumps({"events": [{}] * (EVENTS + 1)}).encode())
