"""A table of contents of eStargz that is not what the layer holds is found, and a true one is accepted."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfarm.jobs.compress.estargz.check import EstargzCheck
from layerfarm.jobs.errors import LayerError, LimitExceeded
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader
from tests.unit.compress.chunked_reader import Blob, sha256
from tests.unit.compress.stargz_reader import (
    DIGEST,
    SIZE,
    TOC,
    ending,
    footer,
    pack,
    toc_of,
    toc_place,
    unpack,
    with_toc,
)
from tests.unit.layer.archives import archive, entry

LARGE = random.Random(2).randbytes(70_000) * 150 + b"end"
TREE = archive(
    entry("d/", "dir"),
    entry("d/a", content=b"a" * 700, mtime=1.25, xattrs={"user.a": b"1"}),
    entry("d/b", content=b"b" * 700),
    entry("d/empty"),
    entry("d/link", "link", link="a"),
    entry("d/hard", "hardlink", link="d/a"),
    entry("large", content=LARGE),
)
TRUE = pack(TREE)
Toc = dict[str, Any]


def faults(blob: Blob) -> list[str]:
    """Return the faults that the check finds."""
    found: list[str] = []
    check = EstargzCheck(
        lambda at, n: blob.data[at : at + n],
        len(blob.data),
        blob.annotations,
        lambda *text: found.append(": ".join(text)),
    )
    tar = unpack(blob.data)
    reader = MemberReader(io.BytesIO(tar), limits())
    for member in reader:
        check.member(member, reader)
    check.finish(sha256(tar), len(tar))
    return found


def rewritten(text: bytes, body: bytes | None = None) -> Blob:
    """The members of TRUE, or others, with another table of contents, consistent in itself."""
    return with_toc(TRUE.data[: toc_place(TRUE)] if body is None else body, text)


def changed(change: Callable[[Toc], object]) -> Blob:
    toc = toc_of(TRUE)
    change(toc)
    return rewritten(json.dumps(toc).encode())


def of(toc: Toc, name: str) -> Any:
    return next(each for each in toc["entries"] if each["name"] == name)


def chunk(toc: Toc, number: int) -> Any:
    return [each for each in toc["entries"] if each["name"] == "large"][number]


def setting(name: str, /, **fields: Any) -> Callable[[Toc], object]:
    return lambda toc: of(toc, name).update(fields)


def test_the_truth_is_not_complained_of() -> None:
    assert faults(TRUE) == []
    assert faults(changed(lambda toc: None)) == []
    assert faults(pack(TREE, prefetch=["large"])) == []


def test_tables_of_other_builders_are_true_too() -> None:
    def change(toc: Toc) -> None:
        of(toc, "d/a")["modtime"] = "1970-01-01T00:00:01Z"
        of(toc, "d/a").update(userName="root", groupName="root", NumLink=0)
        del of(toc, "d/b")["digest"]
        del of(toc, "d/empty")["modtime"]
        of(toc, "d/empty")["modtime"] = "2014-05-13T16:53:20Z"
        last = chunk(toc, -1)
        last["chunkSize"] = len(LARGE) - last["chunkOffset"]

    assert faults(changed(change)) == []


def test_files_that_share_a_member_are_true_too() -> None:
    """As written by stargz-snapshotter with a least size of a member."""
    contents = {"a": b"1" * 700, "b": b"2" * 900, "c": b"3" * 10}
    tar = archive(*(entry(name, content=content) for name, content in contents.items())).rstrip(b"\0")
    tar += bytes(-len(tar) % 512)
    head = gzip.compress(tar[:512], mtime=0)
    entries: list[dict[str, Any]] = []
    for name, content in contents.items():
        place = {"offset": len(head), "innerOffset": tar.index(content) - 512, "chunkDigest": sha256(content)}
        entries.append({"type": "reg", "name": name, "mode": 0o644, "size": len(content), **place})
        entries[-1]["modtime"] = "2014-05-13T16:53:20Z"
    body = head + gzip.compress(tar[512:], mtime=0)
    for order in (entries, entries[::-1]):
        assert faults(rewritten(json.dumps({"version": 1, "entries": order}).encode(), body)) == []
    entries[1]["innerOffset"] += 1
    assert "another digest" in faults(rewritten(json.dumps({"version": 1, "entries": entries}).encode(), body))[0]


SWAPPED = {"offset": of(toc_of(TRUE), "d/b")["offset"]}
OTHER = sha256(b"other")
LIES: dict[str, tuple[Callable[[Toc], object], str]] = {
    "mode": (setting("d/a", mode=0o4755), "mode"),
    "owner": (setting("d/a", uid=1), "uid"),
    "time": (setting("d/a", modtime="1970-01-01T00:00:03Z"), "mtime"),
    "fraction of a time": (setting("d/a", modtime="1970-01-01T00:00:01.26Z"), "mtime"),
    "no time": (setting("d/a", modtime="yesterday"), "mtime"),
    "xattr": (setting("d/a", xattrs={"user.a": "Mg=="}), "xattrs"),
    "link": (setting("d/link", linkName="/etc"), "link"),
    "hard link": (setting("d/hard", linkName="d/b"), "link"),
    "type": (setting("d/empty", type="fifo"), "type"),
    "size": (setting("d/a", size=701), "size"),
    "digest": (setting("d/a", digest=OTHER), "digest"),
    "no digest": (lambda toc: [of(toc, "d/a").pop(key) for key in ("digest", "chunkDigest")], "no digest"),
    "digest of the only chunk": (setting("d/a", chunkDigest=OTHER), "another digest"),
    "offset of another file": (setting("d/a", **SWAPPED), "offset of another"),
    "offset inside a member": (setting("d/a", offset=of(toc_of(TRUE), "d/a")["offset"] + 1), "damaged"),
    "offset outside": (setting("d/a", offset=1 << 40), "lead out"),
    "offset in the table": (setting("large", offset=toc_place(TRUE)), "lead out"),
    "no offset": (setting("d/a", offset=0), "another digest"),
    "inner offset": (setting("d/a", innerOffset=1), "another digest"),
    "inner offset outside": (setting("d/a", innerOffset=1 << 20), "fewer than"),
    "inner offset far outside": (setting("d/a", innerOffset=1 << 50), "too many to be checked"),
    "negative": (setting("d/a", offset=-1), "invalid value"),
    "text for a number": (setting("d/a", size="700"), "invalid value"),
    "missing": (lambda toc: toc["entries"].remove(of(toc, "d/a")), "not in the table"),
    "name outside": (setting("d/a", name="../../etc/passwd"), "not in the tar"),
    "twice": (lambda toc: toc["entries"].append(of(toc, "d/a")), "more than once"),
    "too many": (lambda toc: toc["entries"].append({"type": "dir", "name": "x/"}), "not in the tar"),
    "itself": (lambda toc: toc["entries"].append({"type": "reg", "name": TOC}), "not in the tar"),
    "chunk alone": (lambda toc: toc["entries"].insert(0, {"type": "chunk", "name": "d/"}), "does not follow"),
    "chunk of another": (lambda toc: chunk(toc, 1).update(name="d/a"), "does not follow"),
    "chunk digest": (lambda toc: chunk(toc, 1).update(chunkDigest=OTHER), "another digest"),
    "chunk size": (lambda toc: chunk(toc, 1).update(chunkSize=1 << 60), "not as large"),
    "chunk offset": (lambda toc: chunk(toc, 1).update(chunkOffset=7), "is at 7"),
    "last chunk offset": (lambda toc: chunk(toc, -1).update(chunkOffset=1 << 60), "not as large"),
    "chunks in another order": (lambda toc: chunk(toc, 1).update(offset=1), "damaged"),
    "case of a key": (setting("d/a", UID=0), "unknown key"),
    "version": (lambda toc: toc.update(version=2), "version"),
    "no list": (lambda toc: toc.update(entries={}), "not a list"),
}


@pytest.mark.large
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie: str) -> None:
    change, message = LIES[lie]
    found = faults(changed(change))
    assert any(message in fault for fault in found), found


def test_a_blob_that_contradicts_its_annotations_or_footer_is_found() -> None:
    data, annotations, _ = TRUE
    at = toc_place(TRUE)
    cases = {
        "no footer": Blob(data[:-51], annotations, []),
        "leads out": Blob(data[:-51] + footer(len(data)), annotations, []),
        "does not lead to": Blob(data[:-51] + footer(0), annotations, []),
        "is damaged": Blob(data[:-51] + footer(at + 1), annotations, []),
        "is not the digest": Blob(data, annotations | {DIGEST: OTHER}, []),
        "the tar has": Blob(data, annotations | {SIZE: "1"}, []),
        "does not lead to stargz": Blob(data[:at] + ending(b"other", "other") + footer(at), annotations, []),
        "cannot be read": rewritten(b"[" * 100_000),
    }
    for message, blob in cases.items():
        found = faults(blob)
        assert any(message in fault for fault in found), (message, found)


def test_without_annotations_the_footer_leads_to_the_table() -> None:
    assert faults(Blob(TRUE.data, {}, [])) == []
    lie = changed(setting("d/a", uid=1))
    assert faults(Blob(lie.data, {}, [])) != []


@pytest.mark.parametrize("landmark", [b"", b"\x0e", b"\x0f\x0f"])
def test_a_landmark_has_one_byte(landmark: bytes) -> None:
    tar = archive(entry(".prefetch.landmark", content=landmark)).rstrip(b"\0")
    tar += bytes(-len(tar) % 512)
    entries = [{"type": "reg", "name": ".prefetch.landmark", "mode": 0o644, "modtime": "2014-05-13T16:53:20Z"}]
    head, content = gzip.compress(tar[:512], mtime=0), gzip.compress(tar[512:], mtime=0)
    if landmark:
        entries[0] |= {"size": len(landmark), "offset": len(head), "chunkDigest": sha256(landmark)}  # type: ignore[dict-item]
    (fault,) = faults(rewritten(json.dumps({"version": 1, "entries": entries}).encode(), head + content))
    assert "landmark" in fault


def test_two_landmarks_contradict_each_other() -> None:
    names = (".prefetch.landmark", ".no.prefetch.landmark")
    tar = archive(*(entry(name, content=b"\x0f") for name in names)).rstrip(b"\0")
    tar += bytes(-len(tar) % 512)
    body = b""
    entries = []
    for number, name in enumerate(names):
        header, content = tar[number * 1024 :][:512], tar[number * 1024 + 512 :][:512]
        body += gzip.compress(header, mtime=0)
        place = {"offset": len(body), "size": 1, "chunkDigest": sha256(b"\x0f")}
        entries.append({"type": "reg", "name": name, "mode": 0o644, "modtime": "2014-05-13T16:53:20Z", **place})
        body += gzip.compress(content, mtime=0)
    (fault,) = faults(rewritten(json.dumps({"version": 1, "entries": entries}).encode(), body))
    assert fault == ".prefetch.landmark: and another landmark are in the layer"


def test_a_tar_that_does_not_end_with_its_table_is_found() -> None:
    tar = unpack(TRUE.data)
    found: list[str] = []
    check = EstargzCheck(
        lambda at, n: TRUE.data[at : at + n], len(TRUE.data), {}, lambda *text: found.append(": ".join(text))
    )
    reader = MemberReader(io.BytesIO(tar[: tar.rindex(TOC.encode())]), limits())
    for member in reader:
        check.member(member, reader)
    check.finish("", len(tar))
    assert found == [f"{TOC}: is not the last entry of the tar"]


def test_a_table_in_the_middle_of_the_tar_is_found() -> None:
    first = archive(entry(TOC, content=b"{}")).rstrip(b"\0")
    first += bytes(-len(first) % 512)
    blob = rewritten(json.dumps(toc_of(TRUE)).encode(), gzip.compress(first, mtime=0) + TRUE.data[: toc_place(TRUE)])
    found = faults(blob)
    assert any("must be the last entry" in fault for fault in found)
    assert any("another than the one that the footer leads to" in fault for fault in found)


def test_a_tar_that_no_table_describes_is_found() -> None:
    tar = archive(entry(b"\xff", content=b"x"), format=tarfile.GNU_FORMAT).rstrip(b"\0")
    tar += bytes(-len(tar) % 512)
    (fault,) = faults(rewritten(b'{"version":1,"entries":[]}', gzip.compress(tar, mtime=0)))
    assert "no table of contents can describe the layer" in fault


def test_files_that_share_a_member_in_a_hostile_order_are_not_read_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from layerfarm.jobs.compress.estargz import check

    monkeypatch.setattr(check, "_MOST_SKIPPED", 1000)
    found = faults(changed(setting("large", innerOffset=2000)))
    assert any("too many to be checked" in fault for fault in found)


@pytest.mark.large
@given(st.integers(0, len(TRUE.data) - 1), st.integers(1, 255))
def test_any_damage_is_an_error_or_a_fault_or_harmless(at: int, change: int) -> None:
    data = bytearray(TRUE.data)
    data[at] ^= change
    found: list[str] = []
    check = EstargzCheck(
        lambda at, n: bytes(data[at : at + n]), len(data), TRUE.annotations, lambda *text: found.append(text[1])
    )
    reader = MemberReader(io.BytesIO(unpack(TRUE.data)), limits())
    try:
        for member in reader:
            check.member(member, reader)
        check.finish("", len(unpack(TRUE.data)))
    except LayerError:
        pytest.fail("an error, not a fault")
    assert all(isinstance(text, str) for text in found)


def test_a_hundred_million_chunks_are_not_read() -> None:
    """The size in the header of the table decides, before its content is decompressed."""
    chunk = b'{"type":"chunk","name":"large"},'
    header = tarfile.TarInfo(TOC)
    header.size = 100_000_000 * len(chunk)
    body = TRUE.data[: toc_place(TRUE)]
    data = body + gzip.compress(header.tobuf() + chunk * 1_000_000, mtime=0) + footer(len(body))
    found: list[str] = []
    tracemalloc.start()
    EstargzCheck(lambda at, n: data[at : at + n], len(data), {}, lambda *text: found.append(text[1]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (fault,) = found
    assert "clients refuse" in fault
    assert peak < 10_000_000


def test_the_size_of_a_table_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_TOC_BYTES", "1000")
    assert faults(pack(archive(entry("f", content=b"x")))) == []
    with pytest.raises(LimitExceeded, match="1000"):
        faults(TRUE)
