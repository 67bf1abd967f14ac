"""Tags given by many at once: the index as text, and the wishes of those who wait."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.errors import BlobNotFound, LayerfarmError, LimitExceeded
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.store import REF_NAME, Descriptor, Index, Layout, encode_document, parse_document
from layerfarm.jobs.store.descriptor import named
from layerfarm.jobs.store.index_text import IndexText
from layerfarm.jobs.store.locks import Lock, exclusive
from layerfarm.jobs.store.tag_batch import PATIENCE, TagRequest

A = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1})
B = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "b" * 64, "size": 2})

plain_entries = st.fixed_dictionaries(
    {"mediaType": st.sampled_from(["a/b", "ü"]), "digest": st.just(A.digest), "size": st.integers(0, 9)},
    optional={
        "annotations": st.dictionaries(st.sampled_from([REF_NAME, "k"]), st.sampled_from(["t", "u", "v", '"]}'])),
        "urls": st.lists(st.just("x")),
        "future": st.sampled_from([{"manifests": []}, None, 1]),
    },
)
indexes = st.fixed_dictionaries(
    {"schemaVersion": st.just(2), "manifests": st.lists(plain_entries, max_size=4)},
    optional={"annotations": st.just({"manifests": "]}"}), "zz": st.just({"manifests": []})},
)


def compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


@given(indexes, st.integers(0, 4), st.lists(plain_entries, max_size=3))
def test_a_text_that_goes_on_is_read_as_if_it_were_read_whole(
    document: dict[str, Any], kept: int, more: list[Any]
) -> None:
    known = IndexText.parse(compact(document), "x")
    raw = compact(document | {"manifests": document["manifests"][:kept] + more})
    whole = IndexText.parse(raw, "x")
    read = known.goes_on(raw, "x")
    if more and whole.raw is None and known.raw is None:
        assert read is not None
    if read is not None:
        assert (read.encode(), read.entries, read.names, read.places) == (raw, whole.entries, whole.names, whole.places)


@pytest.mark.parametrize(
    "added",
    [
        b'],"more":[{}',
        b',{"mediaType":"a/b"}',
        b',{"mediaType":"a/b","digest":"sha256:short","size":1}',
        b',{"mediaType":"a/b","digest":"%s","size":-1}' % A.digest.encode(),
        b',{"mediaType":"a/b","digest":"%s","size":true}' % A.digest.encode(),
        b',{"mediaType":"a/b","digest":"%s","size":1,"annotations":{"a":1}}' % A.digest.encode(),
        b',{"mediaType":"a/b","digest":"%s","size":1},' % A.digest.encode(),
        b',{"mediaType":"a/b","digest":"%s","size":1}' % A.digest.encode() + b" ",
        b',{"size":0,"size":1,"mediaType":"a/b","digest":"%s"}' % A.digest.encode(),
        b',{"mediaType":"\xff","digest":"%s","size":1}' % A.digest.encode(),
        b"," + b"[" * 100_000,
        b" ",
        b",",
    ],
)
def test_changes_other_than_appended_entries_are_left_to_the_full_reader(added: bytes) -> None:
    index = Index.model_validate({"manifests": [json.loads(encode_document(named(A, "t")))]})
    known = IndexText.of(index)
    assert known.goes_on(known.body + added + known.tail, "x") is None


@given(
    st.lists(st.sampled_from("tuvw-"), max_size=6),
    st.dictionaries(st.sampled_from("tuvxyz"), st.sampled_from([A, B, None]), max_size=4),
)
def test_a_change_of_the_text_is_that_of_the_documents(names: list[str], tags: dict[str, Descriptor | None]) -> None:
    before = [A if name == "-" else named(A, name) for name in names]
    index = Index.model_validate({"manifests": [json.loads(encode_document(entry)) for entry in before]})
    wanted = list(before)
    for tag, descriptor in tags.items():
        entries = [] if descriptor is None else [named(descriptor, tag)]
        if [entry for entry in before if (entry.annotations or {}).get(REF_NAME) == tag] != entries:
            wanted = [entry for entry in wanted if (entry.annotations or {}).get(REF_NAME) != tag] + entries
    text = IndexText.of(index).change({tag: None if d is None else named(d, tag) for tag, d in tags.items()})
    assert parse_document(Index, text.encode(), "x").manifests == wanted
    assert text.places == IndexText.parse(text.encode(), "x").places


def test_an_index_of_another_tool_is_changed_in_our_form_and_read_again(layout: Layout) -> None:
    text = json.dumps({"manifests": [json.loads(encode_document(named(A, "theirs")))], "schemaVersion": 2}, indent=2)
    path = layout.path / "index.json"
    path.write_text(text)
    assert layout.tags() == ["theirs"]
    layout.tag("theirs", named(A, "theirs"))
    layout.tag("ours", B)
    assert path.read_bytes().startswith(b'{"manifests":[{"mediaType"')
    path.write_text(text.replace("theirs", "again"))
    assert layout.tags() == ["again"]


def test_an_index_never_grows_beyond_what_can_be_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.tag("one", A)
    size = (layout.path / "index.json").stat().st_size
    monkeypatch.setenv("LAYERFARM_LIMIT_INDEX_BYTES", str(size + 10))
    with pytest.raises(LimitExceeded, match="index_bytes"):
        layout.tag("two", A)
    assert layout.tags() == ["one"]


# --- wishes ---------------------------------------------------------------------------------------


def wish_of_another(layout: Layout, wish: TagRequest | bytes, age: float = 0) -> Path:
    """As another process leaves it."""
    directory = layout.path / ".layerfarm" / "tagging"
    directory.mkdir(exist_ok=True)
    path = directory / f"{len(os.listdir(directory)):020d}-x"
    path.write_bytes(wish if isinstance(wish, bytes) else encode_document(wish))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_holder_of_the_lock_sets_the_tags_of_all_waiting_writers(layout: Layout) -> None:
    blob = layout.put(b"x", "a/b")
    absent = blob.model_copy(update={"digest": A.digest})
    granted = wish_of_another(layout, TagRequest(tag="theirs", descriptor=A, needs=[blob]))
    refused = wish_of_another(layout, TagRequest(tag="incomplete", descriptor=A, needs=[blob, absent]))
    layout.tag("ours", B)
    assert layout.tags() == ["theirs", "ours"]
    assert granted.read_bytes().startswith(b"granted\n")
    assert refused.read_bytes().startswith(b"refused " + A.digest.encode() + b"\n")


def test_of_wishes_for_one_tag_the_newest_holds(layout: Layout) -> None:
    wish_of_another(layout, TagRequest(tag="t", descriptor=A))
    wish_of_another(layout, TagRequest(tag="t", descriptor=B))
    layout.tag("other", A)
    assert layout.find("t") == [named(B, "t")]
    layout.tag("t", A)
    assert layout.find("t") == [named(A, "t")]


def test_the_wish_of_a_dead_writer_does_not_come_true_later(layout: Layout) -> None:
    path = wish_of_another(layout, TagRequest(tag="late", descriptor=A), age=PATIENCE + 5)
    layout.tag("ours", B)
    assert layout.tags() == ["ours"]
    assert not path.exists()


def test_request_that_is_removed_on_another_host_while_it_is_opened_is_left_out(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = wish_of_another(layout, TagRequest(tag="theirs", descriptor=A))
    real = Beneath.open

    def stale(self: Beneath, path: Path, flags: int = os.O_RDONLY) -> int:
        if path == removed:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(self, path, flags)

    monkeypatch.setattr(Beneath, "open", stale)
    layout.tag("ours", B)
    assert layout.tags() == ["ours"]


@pytest.mark.parametrize("call", ["pwrite", "close"])
def test_answer_that_cannot_be_written_fails_no_holder_of_the_lock(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    request = wish_of_another(layout, TagRequest(tag="theirs", descriptor=A))
    real = getattr(os, call)

    def refused(fd: int, *rest: object) -> None:
        ours = os.readlink(f"/proc/self/fd/{fd}") == str(request)
        if call == "close":
            real(fd)
        elif not ours:
            real(fd, *rest)
        if ours:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, call, refused)
    layout.tag("ours", B)
    assert layout.tags() == ["theirs", "ours"]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"tag":"not valid","descriptor":{}}', b"\0" * 5000])
def test_a_malformed_request_stops_no_other(layout: Layout, raw: bytes) -> None:
    wish_of_another(layout, raw)
    layout.tag("ours", B)
    assert layout.tags() == ["ours"]


def test_a_wish_that_is_a_link_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(encode_document(TagRequest(tag="t", descriptor=A)))
    directory = layout.path / ".layerfarm" / "tagging"
    directory.mkdir()
    (directory / "0").symlink_to(precious)
    before = precious.read_bytes()
    layout.tag("ours", B)
    assert layout.tags() == ["ours"]
    assert precious.read_bytes() == before


def given_while_locked(layout: Layout, answer: Any, **wish: Any) -> list[BaseException | None]:
    """Give the tag ``t`` while the index is locked, and let ``answer`` do what it wants with the wish first."""
    ends: list[BaseException | None] = []

    def give() -> None:
        try:
            layout.tag("t", A, **wish)
            ends.append(None)
        except LayerfarmError as error:
            ends.append(error)

    directory = layout.path / ".layerfarm" / "tagging"
    thread = threading.Thread(target=give)
    with exclusive(layout.path / ".layerfarm" / "index.lock", layout.path):
        thread.start()
        deadline = time.monotonic() + 20
        while not directory.is_dir() or not os.listdir(directory):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        answer(directory / os.listdir(directory)[0])
    thread.join(20)
    assert os.listdir(directory) == []
    assert os.listdir(layout.path / ".layerfarm" / "ingest") == []
    return ends


def test_a_waiter_succeeds_when_another_one_grants(layout: Layout) -> None:
    # The answer is that it is set, so it is not written again.
    assert given_while_locked(layout, lambda path: path.write_bytes(b"granted\n")) == [None]
    assert layout.tags() == []


def test_waiting_writer_learns_of_missing_blobs(layout: Layout) -> None:
    (error,) = given_while_locked(layout, lambda path: path.write_bytes(b"refused %s\n" % B.digest.encode()))
    assert isinstance(error, BlobNotFound)
    assert B.digest in str(error)


@pytest.mark.parametrize("answer", [lambda path: None, Path.unlink, lambda path: path.write_bytes(b"gra")])
def test_writer_without_an_answer_sets_the_tag_itself(layout: Layout, answer: Any) -> None:
    assert given_while_locked(layout, answer) == [None]
    assert layout.tags() == ["t"]


def test_holder_of_the_lock_checks_the_blobs(layout: Layout) -> None:
    (error,) = given_while_locked(layout, lambda path: None, needs=[A])
    assert isinstance(error, BlobNotFound)
    assert layout.tags() == []


def test_writer_granted_just_before_it_gets_the_lock_sets_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Lock.take_if_free

    def granted_first(lock: Lock) -> bool:
        free = take(lock)
        for wish in (layout.path / ".layerfarm/tagging").glob("*") if free else ():
            wish.write_bytes(b"granted\n")
        return free

    monkeypatch.setattr(Lock, "take_if_free", granted_first)
    assert given_while_locked(layout, lambda path: None) == [None]
    assert layout.tags() == []


def test_referrers_that_the_holder_left_out_are_attached_afterwards(layout: Layout) -> None:
    """A holder of an earlier version knows nothing of them."""
    granted = given_while_locked(layout, lambda path: path.write_bytes(b"granted\n"), referrers=[B])
    assert granted == [None]
    assert [entry.digest for entry in layout.index().manifests] == [B.digest]


def test_a_wish_is_kept_young_while_its_writer_waits(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfarm.jobs.store.tag_batch.TOUCH", 0.0)

    def wait_for_touch(path: Path) -> None:
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    assert given_while_locked(layout, wait_for_touch) == [None]
    assert layout.tags() == ["t"]
