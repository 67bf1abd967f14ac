"""Pulls and pushes through skopeo, with Debian's docker-registry on the other side, and with one that misbehaves."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.errors import (
    AccessDenied,
    DigestMismatch,
    MalformedDocument,
    NotInRegistry,
    RegistryBusy,
    RegistryError,
    StoreError,
    TagNotFound,
    UnsafePath,
)
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Descriptor, Index, Layout
from layerfarm.jobs.store.transfer import import_blob
from layerfarm.worker.catalog.answers import Kind
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.offers import look
from layerfarm.worker.catalog.pace import Pace
from layerfarm.worker.catalog.pull import copy_in, pull, push, reachable_blobs
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.answers import RECORDED, Recorded
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar

Program = Callable[[str], str]
LARGE = os.urandom(300_000)
BASE = tar(("base", LARGE))


@pytest.fixture(scope="module")
def registry(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that holds team/app:1 and :2, on one base, and team/many:1, an index of two platforms."""
    program("skopeo")
    directory = tmp_path_factory.mktemp("registry")
    layout = Layout.create(directory / "images")
    image(layout, [BASE, tar(("app", b"1"))], tag="1")
    image(layout, [BASE, tar(("app", b"2"))], tag="2")
    both = [image(layout, [BASE, tar(("arch", a.encode()))], tag=a, architecture=a) for a in ("amd64", "arm64")]
    manifests = [
        one.descriptor.model_copy(update={"platform": {"os": "linux", "architecture": one.config.architecture}})
        for one in both
    ]
    top = layout.put_document(Index(mediaType=MEDIA_TYPE_INDEX, manifests=manifests), MEDIA_TYPE_INDEX)
    layout.tag("many", top)
    with Registry(directory / "registry", program("docker-registry")) as running:
        running.put(layout.path, "1", "team/app:1")
        running.put(layout.path, "2", "team/app:2")
        running.put(layout.path, "many", "team/many:1")
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def skopeo(**access: object) -> Skopeo:
    return Skopeo(Access.model_validate({"tls-verify": False} | access), first_wait=0.01)


def fetch(host: str, name: str, store: Layout, client: Skopeo | None = None) -> Descriptor:
    client = client or skopeo()
    reference = f"docker://{host}/{name}"
    return pull(client, reference, look(client, reference), store, name)


def test_tags_are_listed(registry: Registry) -> None:
    assert skopeo().tags(f"docker://{registry.host}/team/app") == ["1", "2"]


def test_a_pulled_image_is_the_very_one_and_nothing_is_left_beside(registry: Registry, store: Layout) -> None:
    top = fetch(registry.host, "team/app:1", store)
    assert top.digest == look(skopeo(), f"docker://{registry.host}/team/app:1").digest
    found = resolve(store, "team/app:1")
    assert found.descriptor.digest == top.digest
    assert all(store.open_blob(blob).read() is not None for blob in found.blobs)
    assert list((store.path / ".layerfarm" / "work").iterdir()) == []
    modes = {path.stat().st_mode & 0o777 for path in (store.path / "blobs" / "sha256").iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_a_blob_that_the_store_holds_is_not_fetched_again(registry: Registry, store: Layout) -> None:
    with Gate(registry, lambda method, path: None) as gate:
        fetch(gate.host, "team/app:1", store)
        fetch(gate.host, "team/app:2", store)
        fetch(gate.host, "team/many:1", store)
    base = resolve(store, "team/app:1").manifest.layers[0].digest
    assert sum(method == "GET" and base in path for method, path in gate.requests) == 1


def test_every_platform_of_an_index_comes(registry: Registry, store: Layout) -> None:
    top = fetch(registry.host, "team/many:1", store)
    assert top.media_type == MEDIA_TYPE_INDEX
    for platform in ("linux/amd64", "linux/arm64"):
        assert resolve(store, "team/many:1", platform).config.architecture == platform.split("/")[1]


def test_a_pushed_image_keeps_its_digest(registry: Registry, store: Layout) -> None:
    for name in ("team/app:1", "team/many:1"):
        top = fetch(registry.host, name, store)
        push(skopeo(), store, top, f"docker://{registry.host}/copy/{name}")
        assert look(skopeo(), f"docker://{registry.host}/copy/{name}").digest == top.digest


def test_an_image_comes_from_another_layout(store: Layout, tmp_path: Path) -> None:
    other = Layout.create(tmp_path / "other")
    made = image(other, [tar(("a", b"1"))])
    copy_in(other, "t", store, "team/a:1")
    assert resolve(store, "team/a:1").descriptor.digest == made.descriptor.digest
    with pytest.raises(TagNotFound):
        copy_in(other, "none", store, "x")


# --- registries that misbehave -------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 500, 503])
def test_transient_failures_are_retried_until_they_pass(registry: Registry, store: Layout, status: int) -> None:
    turns = itertools.count()
    with Gate(registry, lambda method, path: status if next(turns) < 3 else None) as gate:
        retries: list[str] = []
        client = skopeo()
        client.on_retry = retries.append
        fetch(gate.host, "team/app:1", store, client)
    assert retries
    assert "retrying" in retries[0]
    assert resolve(store, "team/app:1")


_RACE = {
    "errors": [{"code": "DIGEST_INVALID"}, {"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown to registry"}]
}
"""Answer of docker-registry to a manifest while another client uploads one of its blobs to the same repository again:
it empties the blob's link before it writes it. Five in a hundred manifests, where four clients do nothing else."""


def test_a_manifest_whose_blobs_others_upload_just_now_is_sent_again(registry: Registry, store: Layout) -> None:
    top = fetch(registry.host, "team/app:1", store)
    turns = itertools.count()

    def verdict(method: str, path: str) -> int | None:
        return 400 if method == "PUT" and next(turns) == 0 else None

    with Gate(registry, verdict, refusal=json.dumps(_RACE).encode()) as gate:
        retries: list[str] = []
        client = skopeo()
        client.on_retry = retries.append
        push(client, store, top, f"docker://{gate.host}/team/app:again")
    (retry,) = retries
    # skopeo before 1.18 names both of the registry's reasons, later ones the first.
    assert "manifest blob unknown" in retry or "digest invalid" in retry
    assert look(skopeo(), f"docker://{registry.host}/team/app:again").digest == top.digest


def test_a_registry_that_throttles_is_waited_for(registry: Registry, store: Layout) -> None:
    """skopeo waits itself, 2 s at first."""
    turns = itertools.count()
    with Gate(registry, lambda method, path: 429 if next(turns) == 2 else None) as gate:
        fetch(gate.host, "team/app:1", store)
    assert resolve(store, "team/app:1")


def test_a_registry_that_stays_away_is_an_error_after_so_many_attempts(store: Layout) -> None:
    with pytest.raises(RegistryBusy, match="connection refused"):
        fetch("127.0.0.1:1", "team/app:1", store, skopeo(attempts=2))


@pytest.mark.parametrize(
    ("status", "words"), [(401, "unauthorized|401|authentication"), (403, "denied|403"), (404, "unknown|404|not found")]
)
def test_a_refusal_is_an_error_at_once(registry: Registry, store: Layout, status: int, words: str) -> None:
    def verdict(method: str, path: str) -> int | None:
        return status if "manifests" in path else None

    with Gate(registry, verdict) as gate, pytest.raises(RegistryError, match=f"(?i){words}") as caught:
        fetch(gate.host, "team/app:1", store)
    assert not isinstance(caught.value, RegistryBusy)
    assert sum("manifests" in path for _, path in gate.requests) == 1
    assert store.tags() == []


_NAMES = itertools.cycle(["error-500/pages:404", "defaultbackend-404/denied:unknown", "team/app:1"])
_ERRORS = {
    Kind.ABSENT: NotInRegistry,
    Kind.DENIED: AccessDenied,
    Kind.PASSING: RegistryBusy,
    Kind.REFUSED: RegistryError,
}


@pytest.mark.parametrize(
    ("recorded", "name"),
    [(one, name) for one, name in zip(RECORDED, _NAMES, strict=False) if one.status != 429],
    ids=str,
)
def test_answers_of_real_registries_are_understood_for_any_repository_name(
    registry: Registry, store: Layout, recorded: Recorded, name: str
) -> None:
    """Without the answers of status 429: skopeo itself waits up to a minute after each."""
    top = image(store, [tar(("a", b"1"))], tag="1").descriptor
    repository, _, tag = name.partition(":")

    def verdict(method: str, path: str) -> int | None:
        asked = "tags" if path.endswith("/tags/list") else "upload" if method == "PUT" else "manifest"
        concerned = asked == recorded.request and (asked == "tags" or "/manifests/" in path)
        return recorded.status if concerned else None

    with Gate(registry, verdict, refusal=recorded.body(repository, tag)) as gate:
        reference = f"docker://{gate.host}/{name}"
        with pytest.raises(RegistryError) as caught:
            match recorded.request:
                case "tags":
                    skopeo(attempts=1).tags(reference.rpartition(":")[0])
                case "manifest":
                    skopeo(attempts=1).raw_manifest(reference)
                case "upload":
                    registry.put(store.path, "1", f"{repository}:blobs")
                    push(skopeo(attempts=1), store, top, reference)
    assert type(caught.value) is _ERRORS[recorded.kind], str(caught.value)


def test_a_connection_dropped_in_the_middle_of_a_layer_leaves_no_tag(registry: Registry, store: Layout) -> None:
    def verdict(method: str, path: str) -> int | None:
        return 0 if re.search("blobs/sha256", path) else None

    with Gate(registry, verdict) as gate, pytest.raises(RegistryBusy):
        fetch(gate.host, "team/app:1", store, skopeo(attempts=2))
    assert store.tags() == []
    assert list((store.path / "blobs" / "sha256").iterdir()) == []


def test_without_skopeo_the_error_says_what_to_install(store: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RegistryError, match="apt install skopeo"):
        skopeo().tags("docker://127.0.0.1:1/a")


def test_transfers_are_begun_at_the_pace_that_is_asked_for() -> None:
    pace = Pace(per_minute=1200)
    begun = time.monotonic()
    for _ in range(5):
        pace.wait()
    assert time.monotonic() - begun >= 4 * 60 / 1200


def test_every_question_and_transfer_waits_for_its_turn_and_is_counted(
    registry: Registry, store: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = itertools.count()
    monkeypatch.setattr(Pace, "wait", lambda pace: next(waits))
    client = skopeo()
    with Gate(registry, lambda method, path: None) as gate:
        reference = f"docker://{gate.host}/team/app:1"
        client.tags(reference.rpartition(":")[0])
        offer = look(client, reference)
        pull(client, reference, offer, store, "t")
        client.head(reference)
        client.digest(reference)
    assert client.pace.counts == dict(sorted(Counter(method for method, _ in gate.requests).items()))
    # The first HEAD request tries HTTPS too.
    assert next(waits) == 1 + 1 + 1 + 2 + 1


# --- what is taken over --------------------------------------------------------------------------


def beside(store: Layout) -> Path:
    """Directory in which other programs write blobs for a layout."""
    place = store.path / ".layerfarm/work/1"
    place.mkdir(parents=True)
    return place


def test_only_blobs_with_the_promised_bytes_are_imported(store: Layout) -> None:
    right = store.put(b"content", "text/plain")
    store.blob_path(right.digest).unlink()
    wrong = beside(store) / "wrong"
    wrong.write_bytes(b"CONTENT")
    with pytest.raises(DigestMismatch):
        import_blob(store, wrong, right)
    assert wrong.exists()
    assert not store.has(right)
    wrong.write_bytes(b"content")
    assert import_blob(store, wrong, right)
    assert store.has(right)
    assert not wrong.exists()


def test_links_and_pipes_are_not_taken_over(store: Layout) -> None:
    right = store.put(b"content", "text/plain")
    store.blob_path(right.digest).unlink()
    place = beside(store)
    (place / "content").write_bytes(b"content")
    (place / "link").symlink_to("content")
    os.mkfifo(place / "pipe")
    for name in ("link", "pipe", "none"):
        with pytest.raises((StoreError, UnsafePath)):
            import_blob(store, place / name, right)
    assert not store.has(right)


def test_each_blob_comes_after_those_that_it_names(store: Layout) -> None:
    made = image(store, [BASE])
    order = [blob.digest for blob in reachable_blobs(store, made.descriptor)]
    assert order[-1] == made.descriptor.digest
    assert set(order) == {blob.digest for blob in made.blobs}


def test_dockers_first_schema_is_refused(store: Layout) -> None:
    top = store.put(b'{"schemaVersion": 1, "fsLayers": []}', "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(MalformedDocument, match="schema 1"):
        reachable_blobs(store, top)
