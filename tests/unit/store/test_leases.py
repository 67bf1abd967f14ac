"""Leases: what a job counts on or has made stays, from when it is queued until it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from layerfarm.jobs.errors import BlobNotFound, StoreError
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.store import MEDIA_TYPE_LAYER, Descriptor, Layout
from layerfarm.jobs.store.gc import DEFAULT_GRACE, STAGING_GRACE, collect
from layerfarm.jobs.store.leases import Leases, holding
from layerfarm.jobs.store.reachability import explain_blob
from layerfarm.jobs.store.retention import Trash
from tests.ordinary_user import ordinary_user
from tests.unit.store.test_gc import age_all, digests, held, index, manifest, plain


def lease_of(layout: Layout, holder: str) -> frozenset[str]:
    return next(
        (lease.digests for lease in Leases(layout.path).live(layout.now()) if lease.holder == holder), frozenset()
    )


def run_out(layout: Layout, holder: str) -> None:
    os.utime(layout.path / ".layerfarm" / "leases" / holder / "lease", (1, 1))


def test_blobs_that_a_job_stores_or_finds_are_leased_until_it_ends(layout: Layout) -> None:
    found = layout.put(b"found", MEDIA_TYPE_LAYER)
    again = layout.put(b"again", MEDIA_TYPE_LAYER)
    other = layout.put(b"other", MEDIA_TYPE_LAYER)
    with holding("job1", 60):
        assert layout.claim(found)
        layout.put(b"again", MEDIA_TYPE_LAYER)
        made = layout.put(b"made", MEDIA_TYPE_LAYER)
    age_all(layout)
    assert lease_of(layout, "job1") == digests(found, again, made)
    done = collect(layout, 0)
    assert held(layout) == digests(found, again, made)
    assert (done.leased, [digest for digest, _ in done.blobs]) == (3, [other.digest])
    Leases(layout.path).release("job1")
    collect(layout, 0)
    assert held(layout) == set()


def test_a_blob_is_in_the_lease_before_it_is_reported(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = layout.put(b"x", MEDIA_TYPE_LAYER)
    for step in (
        lambda: layout.claim(blob),
        lambda: layout.put(b"x", MEDIA_TYPE_LAYER),
        lambda: layout.put(b"y", "a/b"),
    ):
        with holding("job", 60):
            monkeypatch.setattr(Leases, "add", lambda *_, **__: (_ for _ in ()).throw(StoreError("no room")))
            before = held(layout)
            with pytest.raises(StoreError, match="no room"):
                step()
            assert held(layout) == before
            monkeypatch.undo()


def test_a_collection_at_any_moment_of_a_job_takes_nothing_from_it(layout: Layout) -> None:
    """With no grace at all, and blobs as old as can be."""
    base, blobs = manifest(layout, b"base")
    Leases(layout.path).add("job", 60, digests(*blobs))
    age_all(layout)
    collect(layout, 0)
    made: list[Descriptor] = []
    for number in range(3):
        with holding("job", 60):
            made.append(layout.put(b"layer %d" % number, MEDIA_TYPE_LAYER))
        age_all(layout)
        collect(layout, 0)
    layout.tag("t", index(layout, base), needs=[*blobs, *made])
    assert layout.tags() == ["t"]


def test_a_lease_that_ran_out_holds_nothing_and_is_swept(layout: Layout) -> None:
    blob = layout.put(b"x", "a/b")
    Leases(layout.path).add("late", 60, [blob.digest])
    age_all(layout)
    run_out(layout, "late")
    assert [path.name for path, _ in collect(layout, 0, dry_run=True).leftovers] == ["late"]
    done = collect(layout, 0)
    assert held(layout) == set()
    assert [path.name for path, _ in done.leftovers] == ["late"]
    assert os.listdir(layout.path / ".layerfarm" / "leases") == []


def test_the_time_of_a_lease_is_the_stores(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = layout.put(b"x", "a/b")
    Leases(layout.path).add("job", 60, [blob.digest])
    age_all(layout)
    for now in (0.0, 1e11):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        collect(layout, 0)
        assert layout.has(blob)


def test_a_lease_is_kept_alive_while_its_holder_works(layout: Layout) -> None:
    with holding("job", 0.4):
        blob = layout.put(b"x", "a/b")
        age_all(layout)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            collect(layout, 0)
            assert layout.has(blob)
            time.sleep(0.05)


def test_work_for_a_job_renews_the_lease_taken_when_it_was_queued(layout: Layout) -> None:
    Leases(layout.path).add("job", 60, [layout.put(b"x", "a/b").digest])
    run_out(layout, "job")
    with holding("job", 60, [layout.path]):
        pass
    assert len(lease_of(layout, "job")) == 1


def test_a_lease_that_expired_while_its_holder_slept_is_taken_again(layout: Layout) -> None:
    with holding("job", 60):
        layout.put(b"one", "a/b")
        run_out(layout, "job")
        collect(layout, 0)
        two = layout.put(b"two", "a/b")
    assert two.digest in lease_of(layout, "job")


def test_user_who_cannot_write_into_the_lease_of_another_takes_one_too() -> None:
    with ordinary_user() as user:
        layout = Layout.create(user.home / "store")
        ours, theirs = digests(layout.put(b"ours", "a/b")), digests(layout.put(b"theirs", "a/b"))
        Leases(layout.path).add("job", 60, ours)
        (layout.path / ".layerfarm").chmod(0o777)
        user.call(lambda: Leases(layout.path).add("job", 60, theirs))
        age_all(layout)
        collect(layout, 0)
        assert held(layout) == ours | theirs
        for lease in (layout.path / ".layerfarm").glob("leases*/*/lease"):
            os.utime(lease, (1, 1))
        Leases(layout.path).touch("job")
        collect(layout, 0)
        assert held(layout) == ours | theirs
        Leases(layout.path).release("job")
        assert Leases(layout.path).live(0) == []


def test_a_job_uses_the_blob_of_another_user_as_it_is(as_root: None) -> None:
    """Its work is not done again, and no copy takes the place of the blob."""
    with ordinary_user() as user:
        layout = Layout.create(user.home / "store")
        blob = layout.put(b"theirs", "a/b")
        inode = layout.blob_path(blob.digest).stat().st_ino
        for directory in layout.path.glob("**/"):
            directory.chmod(0o777)

        def work() -> bool:
            assert not layout.claim(blob)  # nothing protects it
            with holding("job", 60):
                layout.put(b"theirs", "a/b")
                return layout.claim(blob)

        assert user.call(work)
        assert layout.blob_path(blob.digest).stat().st_ino == inode
        age_all(layout)
        collect(layout, 0)
        assert held(layout) == digests(blob)


def test_threads_of_one_process_work_for_different_jobs(layout: Layout) -> None:
    def work(name: str) -> None:
        with holding(name, 60):
            layout.put(name.encode(), "a/b")

    threads = [threading.Thread(target=work, args=(f"job{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leases = {lease.holder: lease.digests for lease in Leases(layout.path).live(layout.now())}
    assert {name: len(found) for name, found in leases.items()} == {f"job{n}": 1 for n in range(4)}
    assert len(frozenset[str]().union(*leases.values())) == 4


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "a" * 101])
def test_a_name_that_leads_elsewhere_holds_nothing(layout: Layout, name: str) -> None:
    with pytest.raises(StoreError):
        Leases(layout.path).add(name, 60, [])
    with pytest.raises(StoreError):
        Leases(layout.path).release(name)


@pytest.mark.parametrize("term", [b"", b"{", b'{"seconds":-1}', b"\xff", None])
def test_a_lease_that_was_not_written_to_its_end_holds_for_a_while(layout: Layout, term: bytes | None) -> None:
    blob = layout.put(b"x", "a/b")
    Leases(layout.path).add("job", 60, [blob.digest])
    path = layout.path / ".layerfarm" / "leases" / "job" / "lease"
    path.unlink() if term is None else path.write_bytes(term)
    (layout.path / ".layerfarm" / "leases" / "stray").touch()
    age_all(layout)
    collect(layout, 0)
    assert layout.has(blob)


def test_staging_of_a_waiting_job_stays_however_long_it_waits(layout: Layout) -> None:
    Leases(layout.path).add("waits", 60, [])
    for name in ("waits", "dead"):
        work = layout.path / ".layerfarm" / "work" / name
        work.mkdir(parents=True)
        (work / "deltas").touch()
        for path in (work / "deltas", work):
            os.utime(path, (1, 1))
    with holding("waits", 60):
        blob = layout.ingest()
    (staged,) = os.listdir(layout.path / ".layerfarm" / "ingest")
    os.utime(layout.path / ".layerfarm" / "ingest" / staged, (1, 1))
    done = collect(layout, STAGING_GRACE)
    assert [path.name for path, _ in done.leftovers] == ["dead"]
    blob.abandon()


# --- the trash ------------------------------------------------------------------------------------


def aged(layout: Layout, seconds: float) -> None:
    """Make the content of the trash that old."""
    for path in list((layout.path / ".layerfarm" / "trash").iterdir()):
        since, _, rest = path.name.partition("-")
        path.rename(path.with_name(f"{float(since) - seconds:.0f}-{rest}"))


def in_trash(layout: Layout) -> set[str]:
    return {blob.digest for blob in Trash(layout.path).blobs()}


def test_removed_blobs_are_in_the_trash_first_and_are_deleted_later(layout: Layout) -> None:
    blob = layout.put(b"xyz", "a/b")
    age_all(layout)
    done = collect(layout)
    assert (done.blobs, done.deleted, done.trash_bytes) == ([(blob.digest, 3)], [], 3)
    assert (held(layout), in_trash(layout)) == (set(), digests(blob))
    assert collect(layout).deleted == []
    aged(layout, DEFAULT_GRACE + 5)
    dry = collect(layout, dry_run=True)
    assert (dry.deleted, in_trash(layout)) == ([(blob.digest, 3)], digests(blob))
    assert collect(layout).deleted == [(blob.digest, 3)]
    assert in_trash(layout) == set()
    assert os.listdir(layout.path / ".layerfarm" / "trash") == []
    with pytest.raises(BlobNotFound):
        layout.read(blob)


@pytest.mark.parametrize("miss", ["read", "has", "claim"])
def test_a_missing_blob_is_restored_from_the_trash(layout: Layout, miss: str) -> None:
    blob = layout.put(b"xyz", "a/b")
    age_all(layout)
    collect(layout)
    assert getattr(layout, miss)(blob) in (True, b"xyz")
    assert held(layout) == digests(blob)
    # It counts as just used.
    assert collect(layout).blobs == []


def test_a_tag_that_came_too_late_finds_its_blobs_in_the_trash(layout: Layout) -> None:
    """Another tool copies an image for longer than the grace: it looks for no blob before it writes the index."""
    made, blobs = manifest(layout, b"slow")
    age_all(layout)
    collect(layout)
    assert held(layout) == set()
    (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [plain(made)]}))
    done = collect(layout)
    assert held(layout) == digests(*blobs)
    # The mark itself has read the manifest already, and so brought it back.
    assert set(done.restored) == digests(*blobs[:2])


def test_a_reader_without_write_permission_reads_from_the_trash(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = layout.put(b"xyz", "a/b")
    age_all(layout)
    collect(layout)
    monkeypatch.setattr(Beneath, "rename", lambda *_, **how: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert layout.read(blob) == b"xyz"
    assert held(layout) == set()


def test_a_blob_that_was_stored_again_leaves_the_trash(layout: Layout) -> None:
    layout.put(b"xyz", "a/b")
    age_all(layout)
    collect(layout)
    blob = layout.put(b"xyz", "a/b")
    assert collect(layout).deleted == [(blob.digest, 3)]
    assert layout.read(blob) == b"xyz"


# --- why ------------------------------------------------------------------------------------------


def test_why_a_blob_is_kept(layout: Layout) -> None:
    made, blobs = manifest(layout, b"one")
    outer = index(layout, made)
    layout.tag("plain", made)
    layout.tag("outer", outer)
    layer = blobs[0]
    found = explain_blob(layout, layer.digest)
    assert [(ref.tag, ref.via) for ref in found.references] == [
        ("plain", (made.digest,)),
        ("outer", (outer.digest, made.digest)),
    ]
    assert found.size == layer.size
    assert found.age < 60
    loose = layout.put(b"loose", "a/b")
    Leases(layout.path).add("job", 60, [loose.digest])
    found = explain_blob(layout, loose.digest)
    assert found.references == []
    assert 0 < found.leases["job"] <= 60
    Leases(layout.path).release("job")
    age_all(layout)
    collect(layout)
    trashed = explain_blob(layout, loose.digest)
    assert trashed.trashed is not None
    assert not trashed.leases
    with pytest.raises(BlobNotFound):
        explain_blob(layout, "sha256:" + "0" * 64)
    proof, _ = manifest(layout, b"proof", subject=plain(made))
    named = proof.model_copy(update={"annotations": {"dev.layerfarm.subject": made.digest}})
    layout.update_index(lambda old: old.model_copy(update={"manifests": [*old.manifests, named]}))
    assert explain_blob(layout, proof.digest).references[0].subject == made.digest


# --- with real processes --------------------------------------------------------------------------


def _work(path: Path, number: int, out: object) -> None:
    layout = Layout(path)
    kept = []
    for round_ in range(40):
        job = f"job-{number}-{round_}"
        with holding(job, 60, [path]):
            shared = layout.put(b"shared by all", MEDIA_TYPE_LAYER)
            made, blobs = manifest(layout, b"%d %d" % (number, round_))
            age_all_safely(layout)
            layout.tag(f"{number}-{round_}", made, needs=[shared, *blobs])
            kept.append(f"{number}-{round_}")
        Leases(path).release(job)
    out.put(kept)  # type: ignore[attr-defined]


def age_all_safely(layout: Layout) -> None:
    """So that no young age protects what is only leased."""
    for path in layout.path.glob("blobs/*/*"):
        with suppress(FileNotFoundError):
            os.utime(path, (1, 1))


def _collect(path: Path, stop: object) -> None:
    while not stop.wait(0.001):  # type: ignore[attr-defined]
        collect(Layout(path), 0)


@pytest.mark.large
def test_no_job_is_hindered_by_collections_without_any_grace(layout: Layout) -> None:
    fork = multiprocessing.get_context("fork")
    stop, out = fork.Event(), fork.Queue()
    collectors = [fork.Process(target=_collect, args=(layout.path, stop), daemon=True) for _ in range(2)]
    workers = [fork.Process(target=_work, args=(layout.path, n, out), daemon=True) for n in range(3)]
    for process in collectors + workers:
        process.start()
    try:
        tags = [tag for _ in workers for tag in out.get(timeout=60)]
    finally:
        stop.set()
    for process in collectors + workers:
        process.join(30)
        assert process.exitcode == 0
    assert sorted(layout.tags()) == sorted(tags)
    assert len(tags) == 120
    before = held(layout)
    assert collect(layout, 0).blobs == [] or held(layout) < before
    for tag in tags:
        (made,) = layout.find(tag)
        assert layout.has(made)
