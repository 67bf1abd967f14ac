"""Garbage collection: blobs that a tag leads to stay, with writers at the same time."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.errors import BlobNotFound, StoreError
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.store import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_LAYER,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Layout,
)
from layerfarm.jobs.store.gc import DEFAULT_GRACE, collect
from layerfarm.jobs.store.reachability import explain_blob
from layerfarm.jobs.store.result_cache import write_result
from layerfarm.jobs.store.retention import Trash

DAY = 86400.0


def put_json(layout: Layout, document: dict[str, Any], media_type: str) -> Descriptor:
    return layout.put(json.dumps(document).encode(), media_type)


def plain(descriptor: Descriptor) -> dict[str, Any]:
    return descriptor.model_dump(by_alias=True, exclude_none=True)


def manifest(layout: Layout, content: bytes, **more: Any) -> tuple[Descriptor, list[Descriptor]]:
    """A manifest of one layer, and all of its blobs."""
    layer = layout.put(b"layer " + content, MEDIA_TYPE_LAYER)
    config = layout.put(b"config " + content, MEDIA_TYPE_CONFIG)
    document = {"schemaVersion": 2, "config": plain(config), "layers": [plain(layer)], **more}
    made = put_json(layout, document, MEDIA_TYPE_MANIFEST)
    return made, [layer, config, made]


def index(layout: Layout, *children: Descriptor, **more: Any) -> Descriptor:
    return put_json(layout, {"schemaVersion": 2, "manifests": [plain(c) for c in children], **more}, MEDIA_TYPE_INDEX)


def held(layout: Layout) -> set[str]:
    return {f"{path.parent.name}:{path.name}" for path in layout.path.glob("blobs/*/*")}


def digests(*descriptors: Descriptor) -> set[str]:
    return {descriptor.digest for descriptor in descriptors}


def age_all(layout: Layout) -> None:
    for path in layout.path.glob("blobs/*/*"):
        os.utime(path, (1, 1), follow_symlinks=False)


def test_everything_a_tag_leads_to_stays_and_the_rest_goes(layout: Layout) -> None:
    one, one_blobs = manifest(layout, b"one")
    two, two_blobs = manifest(layout, b"two")
    _, lost = manifest(layout, b"lost")
    nested = index(layout, two)
    outer = index(layout, one, nested)
    layout.tag("t", outer)
    done = collect(layout, 0)
    assert held(layout) == digests(outer, nested, *one_blobs, *two_blobs)
    assert {digest for digest, _ in done.blobs} == digests(*lost)
    assert done.bytes == sum(blob.size for blob in lost)


def test_untagged_entries_of_the_index_keep_their_blobs(layout: Layout) -> None:
    made, blobs = manifest(layout, b"x")
    layout.update_index(lambda old: old.model_copy(update={"manifests": [made]}))
    assert collect(layout, 0).blobs == []
    assert held(layout) == digests(*blobs)


def test_referrers_and_their_subjects_stay(layout: Layout) -> None:
    subject, blobs = manifest(layout, b"subject")
    referrer, more = manifest(layout, b"referrer", subject=plain(subject))
    layout.update_index(lambda old: old.model_copy(update={"manifests": [referrer]}))
    collect(layout, 0)
    assert held(layout) == digests(*blobs, *more)


def test_a_subject_that_the_store_does_not_hold_is_no_fault(layout: Layout) -> None:
    absent = {"mediaType": MEDIA_TYPE_MANIFEST, "digest": "sha256:" + "a" * 64, "size": 9}
    referrer, blobs = manifest(layout, b"referrer", subject=absent)
    layout.tag("t", referrer)
    assert collect(layout, 0).blobs == []
    assert held(layout) == digests(*blobs)


@pytest.mark.parametrize(
    "media_type", ["application/vnd.docker.distribution.manifest.v2+json", "application/x-unheard-of"]
)
def test_blobs_of_foreign_manifests_stay(layout: Layout, media_type: str) -> None:
    blob = layout.put(b"blob", "application/x")
    foreign = put_json(layout, {"blobs": [{"deep": [plain(blob)]}]}, media_type)
    layout.tag("t", foreign)
    collect(layout, 0)
    assert held(layout) == digests(blob, foreign)


@pytest.mark.parametrize("content", [b"\x1f\x8b no json", b"[1]", bytes(2000)], ids=["archive", "list", "large"])
def test_an_entry_of_the_index_that_is_no_document_stays(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_DOCUMENT_BYTES", "1999")
    archive = layout.put(content, "application/zip")
    layout.tag("t", archive)
    collect(layout, 0)
    assert held(layout) == digests(archive)


def test_a_manifest_that_names_itself_in_circles_is_read_once(layout: Layout) -> None:
    one, blobs = manifest(layout, b"one")
    twice = index(layout, one, one, subject=plain(one))
    layout.tag("t", twice)
    collect(layout, 0)
    assert held(layout) == digests(twice, *blobs)


@pytest.mark.parametrize("damage", ["missing", "corrupt", "no-json", "no-object", "no-descriptor"])
def test_nothing_is_removed_when_a_manifest_cannot_be_read(layout: Layout, damage: str) -> None:
    made, blobs = manifest(layout, b"one")
    if damage == "no-json":
        made = layout.put(b"[not json", MEDIA_TYPE_MANIFEST)
    if damage == "no-object":
        made = layout.put(b"[]", MEDIA_TYPE_MANIFEST)
    if damage == "no-descriptor":
        made = put_json(layout, {"layers": [{"digest": "sha256:short"}]}, MEDIA_TYPE_MANIFEST)
    layout.tag("t", made if damage == "missing" else index(layout, made))
    path = layout.blob_path(made.digest)
    if damage == "missing":
        path.unlink()
    elif damage == "corrupt":
        path.write_bytes(b"x" * made.size)
    before = held(layout)
    with pytest.raises(StoreError, match="nothing was removed"):
        collect(layout, 0)
    assert held(layout) == before
    assert digests(*blobs[:2]) <= before


@pytest.mark.parametrize("media_type", [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX])
def test_a_manifest_of_an_index_may_be_absent(layout: Layout, media_type: str) -> None:
    """As ``docker save`` writes it for the platforms that were never pulled (image-layout.md "Blobs")."""
    here, blobs = manifest(layout, b"here")
    other, other_blobs = manifest(layout, b"another image")
    _, lost = manifest(layout, b"lost")
    absent = Descriptor(mediaType=media_type, digest="sha256:" + "a" * 64, size=9)
    nested = index(layout, absent, here)
    sparse = index(layout, absent, nested)
    layout.tag("sparse", sparse)
    layout.tag("other", other)
    done = collect(layout, 0)
    assert held(layout) == digests(sparse, nested, *blobs, *other_blobs)
    assert {digest for digest, _ in done.blobs} == digests(*lost)
    assert done.absent == [absent.digest]
    found = explain_blob(layout, blobs[0].digest)
    assert [(each.tag, each.via) for each in found.references] == [
        ("sparse", (sparse.digest, nested.digest, here.digest))
    ]


def test_an_absent_manifest_that_came_meanwhile_keeps_its_blobs(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark under the lock asks again: a pull of one more platform changes no tag."""
    made, blobs = manifest(layout, b"late")
    sparse = index(layout, made)
    layout.tag("t", sparse)
    path = layout.blob_path(made.digest)
    away = layout.path / "away"
    path.rename(away)
    locked = Layout.locked

    def comes_first(self: Layout) -> Any:
        if away.exists():
            away.rename(path)
        return locked(self)

    monkeypatch.setattr(Layout, "locked", comes_first)
    assert collect(layout, 0).absent == []
    assert held(layout) == digests(sparse, *blobs)


def test_nothing_is_removed_when_an_entry_of_the_index_is_no_descriptor(layout: Layout) -> None:
    """Its target is not known."""
    made, blobs = manifest(layout, b"one")
    layout.tag("odd", made)
    raw = json.loads((layout.path / "index.json").read_bytes())
    raw["manifests"][0]["size"] = "9"
    del raw["manifests"][0]["mediaType"]
    (layout.path / "index.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match=r"nothing was removed.*odd"):
        collect(layout, 0)
    assert held(layout) == digests(*blobs)


def test_young_blobs_stay_and_used_ones_are_young_again(layout: Layout) -> None:
    _, blobs = manifest(layout, b"one")
    age_all(layout)
    layer, config, made = blobs
    layout.put(b"config one", MEDIA_TYPE_CONFIG)
    assert layout.claim(layer)
    done = collect(layout)
    assert held(layout) == digests(layer, config)
    assert [digest for digest, _ in done.blobs] == [made.digest]
    assert (done.young, done.young_bytes) == (2, layer.size + config.size)


def test_claim_says_whether_the_blob_is_there(layout: Layout) -> None:
    blob = layout.put(b"x", "a/b")
    assert layout.claim(blob)
    assert not layout.claim(blob.model_copy(update={"size": 2}))
    layout.blob_path(blob.digest).unlink()
    assert not layout.claim(blob)


def test_dry_run_says_all_and_removes_nothing(layout: Layout) -> None:
    _, blobs = manifest(layout, b"one")
    private = layout.path / ".layerfarm"
    (private / "ingest" / "left").write_bytes(b"x")
    os.utime(private / "ingest" / "left", (1, 1))
    (private / "ingest" / "being-written").write_bytes(b"x")
    (layout.path / ".umoci-left").mkdir()
    write_result(layout, "kind", "unread", b"x")
    os.utime(private / "notes/kind/unread", (1, 1))
    before = sorted(layout.path.rglob("*"))
    done = collect(layout, 0, dry_run=True)
    assert sorted(path for path in layout.path.rglob("*") if path.name != "index.lock") == [
        path for path in before if path.name != "index.lock"
    ]
    assert {digest for digest, _ in done.blobs} == digests(*blobs)
    assert [(path.name, size) for path, size in done.leftovers] == [("unread", 1), ("left", 1), (".umoci-left", 0)]


def test_umoci_directories_go_unless_a_umoci_holds_them(layout: Layout) -> None:
    for name in (".umoci-dead", ".umoci-alive", ".umoci-young"):
        (layout.path / name).mkdir()
        (layout.path / name / "blob").touch()
    for name in (".umoci-dead", ".umoci-alive"):
        os.utime(layout.path / name, (1, 1))
    precious = layout.path.parent / "precious"
    precious.mkdir()
    (layout.path / ".umoci-link").symlink_to(precious)
    fd = os.open(layout.path / ".umoci-alive", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = collect(layout, DAY)
    finally:
        os.close(fd)
    assert done.leftovers == [(layout.path / ".umoci-dead", 0)]
    assert sorted(path.name for path in layout.path.glob(".umoci-*")) == [".umoci-alive", ".umoci-link", ".umoci-young"]


def test_blobs_shared_by_a_link_are_refused(layout: Layout, tmp_path: Path) -> None:
    blob = layout.put(b"of another layout", "a/b")
    (layout.path / "blobs").rename(tmp_path / "shared")
    (layout.path / "blobs").symlink_to(tmp_path / "shared")
    with pytest.raises(StoreError, match="shared"):
        collect(layout, 0)
    assert layout.has(blob)


def test_files_that_are_no_blobs_are_left_alone(layout: Layout) -> None:
    strays = [layout.path / "blobs" / name for name in ("README", "sha256/README")]
    for stray in strays:
        stray.write_text("mine")
    directory = layout.path / "blobs/sha256" / ("a" * 64)
    directory.mkdir()
    assert collect(layout, 0).blobs == []
    assert directory.is_dir() and all(stray.exists() for stray in strays)


def test_blobs_moved_by_a_dead_collection_are_restored_before_the_mark(layout: Layout) -> None:
    made, blobs = manifest(layout, b"one")
    trash = layout.path / ".layerfarm" / "trash" / "0123" / "sha256"
    trash.mkdir(parents=True)
    for blob in blobs:
        path = layout.blob_path(blob.digest)
        path.rename(trash / path.name)
    layout.tag("t", made)
    collect(layout, 0)
    assert held(layout) == digests(*blobs)
    assert os.listdir(layout.path / ".layerfarm" / "trash") == []


def test_a_blob_that_cannot_be_restored_stays_in_the_trash(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    made, blobs = manifest(layout, b"one")
    age_all(layout)
    collect(layout, DAY)
    trashed = [blob.digest for blob in Trash(layout.path).blobs()]
    assert sorted(trashed) == sorted(digests(*blobs))
    layout.blob_path(made.digest).write_bytes(Trash(layout.path)._find(made.digest).read_bytes())  # type: ignore[union-attr]
    layout.tag("t", made)

    def refuse(files: Beneath, path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Beneath, "touch", refuse)
    assert collect(layout, DAY).restored == []
    monkeypatch.undo()
    assert sorted(collect(layout, DAY).restored) == sorted(digests(*blobs[:2]))


def test_trash_of_a_collection_in_the_future_stays(layout: Layout) -> None:
    """The clock of the store was set back: how long it has been there is unknown."""
    blob = layout.put(b"x", "a/b")
    path = layout.blob_path(blob.digest)
    trash = layout.path / ".layerfarm/trash/99999999999-later/sha256"
    trash.mkdir(parents=True)
    path.rename(trash / path.name)
    other = layout.put(b"other", "a/b")
    age_all(layout)
    done = collect(layout, 0)
    assert ([digest for digest, _ in done.deleted], done.trash_bytes) == ([other.digest], 1)
    assert os.listdir(trash) == [path.name]


def test_a_blob_used_between_look_and_sweep_is_put_back(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = layout.put(b"x", "a/b")
    age_all(layout)
    rename = Beneath.rename

    def used_first(files: Beneath, source: Path, target: Path, **how: bool) -> None:
        if source == layout.blob_path(blob.digest):
            assert layout.claim(blob)
        rename(files, source, target, **how)

    monkeypatch.setattr(Beneath, "rename", used_first)
    assert collect(layout).blobs == []
    assert layout.has(blob)


def test_a_slow_deletion_never_hits_blobs_moved_by_another_collection(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first deletes when it holds the lock no more: its blob is back by then, used, and moved again."""
    blob = layout.put(b"x", "a/b")
    remove = Beneath.remove
    begun: list[str] = []

    def slow(files: Beneath, path: Path) -> None:
        if not begun and "doomed" in path.parts:
            begun.extend(os.listdir(path))
            layout.put(b"x", "a/b")
            age_all(layout)
            assert [digest for digest, _ in collect(layout).blobs] == [blob.digest]
        remove(files, path)

    monkeypatch.setattr(Beneath, "remove", slow)
    assert collect(layout, 0).bytes == 1
    assert len(begun) == 1
    assert layout.read(blob) == b"x"


def test_now_is_the_stores_clock_not_the_machines(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = layout.put(b"x", "a/b")
    monkeypatch.setattr(time, "time", lambda: 1e11)
    assert collect(layout).blobs == []
    assert layout.has(blob)


def test_a_tag_is_refused_when_a_blob_it_needs_is_gone(layout: Layout) -> None:
    made, blobs = manifest(layout, b"one")
    collect(layout, 0)
    with pytest.raises(BlobNotFound, match="gc"):
        layout.tag("t", made, needs=blobs)
    assert layout.tags() == []


# --- with real processes -------------------------------------------------------------------------

_IMAGES = 25


def _write_images(path: Path, writer: int, out: Any) -> None:
    """Make images on a layer that all share, tag them, remove every second tag again."""
    layout = Layout(path)
    given, refused = [], 0
    for number in range(_IMAGES):
        shared = layout.put(b"shared by all", MEDIA_TYPE_LAYER)
        made, blobs = manifest(layout, b"%d-%d" % (writer, number), annotations={"shared": "yes"})
        document = {"schemaVersion": 2, "manifests": [plain(made)], "extra": plain(shared)}
        top = put_json(layout, document, MEDIA_TYPE_INDEX)
        tag = f"w{writer}-{number}"
        try:
            layout.tag(tag, top, needs=[shared, *blobs, top])
        except BlobNotFound:
            refused += 1
            continue
        if number % 2:
            layout.untag(tag)
        else:
            given.append(tag)
    out.put((given, refused))


def _collect_until(path: Path, grace: float, stop: Any) -> None:
    while not stop.wait(0.005):
        collect(Layout(path), grace)


@pytest.mark.large
@pytest.mark.parametrize("grace", [0.0, DEFAULT_GRACE])
def test_concurrent_collections_never_take_blobs_reachable_from_a_tag(layout: Layout, grace: float) -> None:
    fork = multiprocessing.get_context("fork")
    stop, out = fork.Event(), fork.Queue()
    layout.put(b"shared by all", MEDIA_TYPE_LAYER)
    age_all(layout)
    collectors = [fork.Process(target=_collect_until, args=(layout.path, grace, stop), daemon=True) for _ in range(2)]
    writers = [fork.Process(target=_write_images, args=(layout.path, n, out), daemon=True) for n in range(3)]
    for process in collectors + writers:
        process.start()
    try:
        reports = [out.get(timeout=60) for _ in writers]
    finally:
        stop.set()
    for process in collectors + writers:
        process.join(30)
        assert process.exitcode == 0
    given = [tag for tags, _ in reports for tag in tags]
    if grace:
        # Nobody is ever hindered: that is what the grace is for.
        assert sum(refused for _, refused in reports) == 0
        assert len(given) == len(writers) * -(-_IMAGES // 2)
    assert sorted(layout.tags()) == sorted(given)
    # Every tag is whole: the mark itself fails on a missing manifest, and all that it finds is there.
    before = held(layout)
    done = collect(layout, 0)
    for tag in given:
        (top,) = layout.find(tag)
        document = json.loads(layout.read(top))
        (inner,) = (Descriptor.model_validate(child) for child in document["manifests"])
        image = json.loads(layout.read(inner))
        for blob in (document["extra"], image["config"], *image["layers"]):
            layout.read(Descriptor.model_validate(blob))
    assert held(layout) == before - {digest for digest, _ in done.blobs}


def test_a_collection_that_is_killed_leaves_a_whole_layout(layout: Layout) -> None:
    made, blobs = manifest(layout, b"kept")
    layout.tag("t", made)
    for number in range(300):
        layout.put(b"garbage %d" % number, "a/b")
    code = (
        "import sys; from pathlib import Path\n"
        "from layerfarm.jobs.store import Layout; from layerfarm.jobs.store.gc import collect\n"
        "print('go', flush=True); collect(Layout(Path(sys.argv[1])), 0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(layout.path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    # Somewhere within the sweep: it is killed when the first blobs are gone, or has just ended.
    while len(held(layout)) > 250 and process.poll() is None:
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    collect(layout, 0)
    assert held(layout) == digests(*blobs)
    assert os.listdir(layout.path / ".layerfarm" / "trash") == []
