"""Tar headers and sparse maps that break the format; removing trees that resist."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerfarmError, LimitExceeded, MalformedLayer, TruncatedStream
from layerfarm.jobs.fs.remove import remove
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.pax import decode_records, encode_records, parse_number, parse_time
from layerfarm.jobs.tar.reader import Member, MemberReader
from layerfarm.jobs.tar.sparse import Holes
from layerfarm.jobs.tar.writer import TRAILER, Header, encode_header
from tests.steps import steps
from tests.trees import directory, file, read_tree, symlink, tree
from tests.unit.layer.archives import archive, entry
from tests.unit.tar.headers import block, extended, records


def read(raw: bytes, limits: Limits | None = None) -> list[tuple[Member, bytes]]:
    reader = MemberReader(io.BytesIO(raw), limits or Limits())
    return [(member, b"".join(map(bytes, reader.content()))) for member in reader]


def patched(at: int, field: bytes) -> bytes:
    """A header with one field overwritten and its checksum right again."""
    block = bytearray(encode_header(Header(b"f", b"0")))
    block[at : at + len(field)] = field
    total = sum(block[:148]) + sum(block[156:]) + 256
    block[148:156] = b"%06o\0 " % total
    return bytes(block) + TRAILER


@pytest.mark.parametrize(("at", "size"), [(100, 8), (108, 8), (116, 8), (124, 12)])
@pytest.mark.parametrize("text", [b"\xff\xff", b"9", b"1_0", b"+7", b"-7", b"0x7", b"x"])
def test_a_number_that_is_none_or_negative_is_an_error(at: int, size: int, text: bytes) -> None:
    field = text.ljust(size, b"\xff" if text[0] == 0xFF else b"\0")
    with pytest.raises(MalformedLayer):
        read(patched(at, field))


def test_an_empty_number_is_zero_and_spaces_do_not_matter() -> None:
    ((member, _),) = read(patched(100, b"        "))
    assert member.mode == 0
    for field in (b"  755 \0 ", b"\0\0 755\0\0", b"755\0" + b"44\0\0"):
        ((member, _),) = read(patched(100, field))
        assert member.mode == 0o755


@pytest.mark.parametrize("first", [b"\x80\0\0\x01", b"\xff\xff\xff\xfe"])
def test_a_base_256_number_of_more_than_64_bits_is_an_error(first: bytes) -> None:
    with pytest.raises(MalformedLayer, match="64 bits"):
        read(patched(136, first + bytes(8)))


def test_a_huge_base_256_size_is_an_error_not_an_allocation() -> None:
    with pytest.raises(LayerfarmError):
        read(patched(124, b"\x80" + b"\x7f" * 11))


@pytest.mark.parametrize("checksum", [b"0000000\0", b"        ", b"zzzzzz\0 ", b"\0" * 8])
def test_a_wrong_checksum_is_an_error(checksum: bytes) -> None:
    raw = bytearray(archive(entry("f")))
    raw[148:156] = checksum
    with pytest.raises(MalformedLayer, match="checksum"):
        read(bytes(raw))


def test_random_bytes_are_no_tar() -> None:
    with pytest.raises(MalformedLayer):
        read(b"this is no tar at all" * 100)


def test_an_entry_without_a_name_is_an_error() -> None:
    with pytest.raises(MalformedLayer, match="no name"):
        read(patched(0, b"\0"))


GNU = (257, b"ustar  \0")


def only(raw: bytes) -> tuple[Member, bytes]:
    """The one member of the blocks."""
    (found,) = read(raw + TRAILER)
    return found


def test_blocks_that_docker_wrote_before_go_1_8_have_a_prefix_where_gnu_has_times() -> None:
    member, _ = only(block(GNU, (345, b"usr/share/doc")))
    assert (member.name, member.atime) == (b"usr/share/doc/f", None)


@pytest.mark.parametrize(
    ("fields", "name", "atime"),
    [
        ([(345, b"00000000007\0")], b"f", 7),
        ([(345, b"00000000007\0"), (357, b"00000000006\0")], b"f", 7),
        ([(345, b"\x80" + bytes(10) + b"\x07")], b"f", 7),
        ([(345, b"00000000007 "), (357, b"no time")], b"00000000007 no time/f", None),
        ([(345, b"\0"), (357, b"no time")], b"f", None),
        ([(345, "dir/\u00e9".encode())], b"f", None),
    ],
    ids=["access", "both", "base-256", "prefix over both", "change only", "not ASCII"],
)
def test_times_of_gnu_blocks_are_no_prefix(fields: list[tuple[int, bytes]], name: bytes, atime: int | None) -> None:
    member, _ = only(block(GNU, *fields))
    assert (member.name, member.atime) == (name, None if atime is None else atime * 10**9)


def test_star_blocks_have_times_behind_their_prefix() -> None:
    fields = (345, b"dir"), (476, b"00000000007\0"), (488, b"00000000006\0"), (508, b"tar\0")
    member, _ = only(block(*fields))
    assert (member.name, member.atime) == (b"dir/f", 7 * 10**9)
    with pytest.raises(MalformedLayer):
        only(block(*fields, (488, b"no time")))


@pytest.mark.parametrize("magic", [bytes(8), b"ustar \0\0", b"ustar00\0"])
def test_blocks_of_unix_v7_have_neither_prefix_nor_devices(magic: bytes) -> None:
    member, _ = only(block((257, magic), (156, b"3"), (329, b"0000001\0"), (337, b"0000003\0"), (345, b"dir")))
    assert (member.name, member.device) == (b"f", (0, 0))


def test_of_several_pax_headers_the_last_counts_with_nothing_of_the_others() -> None:
    member, _ = only(records((b"mtime", b"9"), (b"path", b"p")) + records((b"uid", b"7")) + block())
    assert (member.name, member.uid, member.mtime) == (b"f", 7, 5 * 10**9)


@pytest.mark.parametrize("order", [1, -1])
def test_a_long_name_of_gnu_overrides_a_pax_path(order: int) -> None:
    headers = [extended(b"L", b"long\0"), extended(b"K", b"target\0"), records((b"path", b"p"), (b"linkpath", b"l"))]
    member, _ = only(b"".join(headers[::order]) + block((156, b"2")))
    assert (member.name, member.link) == (b"long", b"target")


def test_an_empty_long_name_is_none() -> None:
    member, _ = only(extended(b"L", b"\0") + records((b"path", b"p")) + block())
    assert member.name == b"p"


def test_extended_headers_of_one_entry_count_together() -> None:
    header = records((b"comment", b"x" * 600))
    limits = Limits(pax_bytes=1500)
    assert len(read((header * 2 + block()) * 3 + TRAILER, limits)) == 3
    for third in (header, extended(b"L", b"n" * 600), extended(b"K", b"n" * 600)):
        with pytest.raises(LimitExceeded, match="1500"):
            read(header * 2 + third + block() + TRAILER, limits)


BAD = b"no number"[:8]
EXTENDED_WITH = {
    "mode": (100, BAD),
    "owner": (108, BAD),
    "group": (116, BAD),
    "time": (136, BAD),
    "device": (329, BAD),
    "star time": (476, BAD + bytes(24) + b"tar\0"),
}


@pytest.mark.parametrize("name", EXTENDED_WITH)
@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_a_field_of_an_extended_header_that_is_no_number_is_an_error(name: str, flag: bytes) -> None:
    body = (b"6 a=b\n" if flag in b"xg" else b"long\0").ljust(512, b"\0")
    raw = block((156, flag), (124, b"%011o\0" % (6 if flag in b"xg" else 5)), EXTENDED_WITH[name]) + body + block()
    with pytest.raises(MalformedLayer):
        only(raw)


@pytest.mark.parametrize("fields", [(GNU, (345, b"usr/share")), ((257, bytes(8)), (329, BAD))], ids=["prefix", "v7"])
def test_bytes_outside_the_fields_of_an_extended_header_may_hold_anything(
    fields: tuple[tuple[int, bytes], ...],
) -> None:
    member, _ = only(block((156, b"x"), (124, b"%011o\0" % 9), *fields) + b"9 path=p\n".ljust(512, b"\0") + block())
    assert member.name == b"p"


@pytest.mark.parametrize("flag", [b"0", b"2", b"5"])
def test_device_fields_are_numbers_whatever_the_type_is(flag: bytes) -> None:
    with pytest.raises(MalformedLayer):
        only(block((156, flag), (329, BAD)))
    member, _ = only(block((156, flag), (329, b"\xff" * 8), (337, b"0000003\0")))
    assert member.device == (0, 0)
    member, _ = only(block((156, flag), (257, bytes(8)), (329, BAD)))
    assert member.device == (0, 0)


@pytest.mark.parametrize("flag", [b"2", b"5"])
def test_a_size_that_counts_nothing_is_a_number_all_the_same(flag: bytes) -> None:
    for raw in (block((156, flag), (124, BAD)), records((b"size", b"3.0")) + block((156, flag))):
        with pytest.raises(MalformedLayer):
            only(raw)
    for raw in (block((156, flag), (124, b"\xff" * 12)), records((b"size", b"-3")) + block((156, flag))):
        assert only(raw)[0].size == 0


def test_a_size_of_a_header_is_a_number_that_is_not_negative_though_a_record_overrides_it() -> None:
    for field in (BAD, b"\xff" * 12):
        with pytest.raises(MalformedLayer):
            only(records((b"size", b"0")) + block((124, field)))
    # The type 0 of v7 is a file's until the name says that it is a directory.
    with pytest.raises(MalformedLayer):
        only(block((156, b"\0"), (0, b"d/"), (124, b"\xff" * 12)))


@pytest.mark.parametrize(("at", "key"), [(108, b"uid"), (116, b"gid")])
def test_an_owner_is_negative_only_if_no_record_overrides_it(at: int, key: bytes) -> None:
    member, _ = only(records((key, b"7")) + block((at, b"\xff" * 8)))
    assert member.uid + member.gid == 7
    for raw in (records((key, b"-7")) + block(), records((key, b"")) + block((at, b"\xff" * 8))):
        with pytest.raises(MalformedLayer, match="negative"):
            only(raw)


def test_a_negative_size_of_a_record_is_an_error_where_content_follows() -> None:
    with pytest.raises(MalformedLayer, match="negative"):
        only(records((b"size", b"-3")) + block())


@pytest.mark.parametrize("key", [b"mtime", b"atime", b"ctime", b"uid", b"gid", b"size"])
@pytest.mark.parametrize("value", [b"1x", b"9223372036854775808", b"-9223372036854775809", b"1 "])
def test_records_that_are_no_number_of_64_bits_are_an_error(key: bytes, value: bytes) -> None:
    with pytest.raises(MalformedLayer):
        only(records((key, value)) + block((156, b"5")))


def test_records_may_have_any_number_of_leading_zeros_and_a_sign() -> None:
    zeros = b"0" * 5000
    fields = (b"uid", zeros + b"7"), (b"gid", b"+8"), (b"mtime", b"-" + zeros + b"9.5"), (b"size", b"-0")
    member, _ = only(records(*fields) + block())
    assert (member.uid, member.gid, member.mtime, member.size) == (7, 8, -9_500_000_000, 0)


def test_a_checksum_that_is_no_number_matches_no_sum() -> None:
    raw = bytearray(block((0, b"\xff" * 100)))
    raw[148:156] = b"no sum  "
    # The sum of signed bytes can be -1.
    rest = sum(byte - 256 if byte > 127 else byte for byte in raw[:148] + raw[156:]) + 256
    for at in range(400, 500):
        step = max(-128, min(127, -1 - rest))
        raw[at] = step % 256
        rest += step
    assert rest == -1
    with pytest.raises(MalformedLayer, match="checksum"):
        only(bytes(raw))


def test_the_map_of_a_global_header_has_its_order_too() -> None:
    pairs = (b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.offset", b"0")
    assert only(extended(b"g", encode_records(pairs[::-1])) + block())[0].holes is None
    with pytest.raises(MalformedLayer, match="order"):
        only(extended(b"g", encode_records(pairs)) + block())


def test_many_global_headers_take_linear_time_and_no_memory() -> None:
    def globals_with_other_records(count: int) -> bytes:
        return b"".join(extended(b"g", encode_records([(b"key%d" % number, b"v" * 300)])) for number in range(count))

    few, many = (globals_with_other_records(count) + block() + TRAILER for count in (200, 20_000))
    assert steps(lambda: read(many)) < 105 * steps(lambda: read(few))
    tracemalloc.start()
    try:
        ((member, _),) = read(many)
        # The reader's buffer takes 2 MiB. Kept records would take 6 MB more, and their copies, which steps() does not
        # count, quadratic time.
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert (member.name, member.xattrs) == (b"f", ())


def test_an_entry_of_type_x_in_capitals_is_one_like_any_other() -> None:
    (first, content), (second, _) = read(extended(b"X", b"9 path=p\n") + block() + TRAILER)
    assert (first.type, content, second.name) == (0x58, b"9 path=p\n", b"f")


def test_gnu_sparse_maps_end_with_an_area_that_begins_with_a_nul() -> None:
    areas = b"00000000001\0" + b"00000000003\0" + bytes(24) + b"no numbers".ljust(24)
    size = (124, b"00000000003\0"), (483, b"00000000010\0")
    member, content = only(block(GNU, (156, b"S"), (386, areas), *size) + b"abc".ljust(512, b"\0"))
    assert member.holes == Holes(8, ((1, 3),))
    assert content == b"abc"
    with pytest.raises(MalformedLayer):
        only(block((156, b"S"), *size) + b"abc".ljust(512, b"\0"))


@pytest.mark.parametrize("flag", [b"\0", b"0", b"7", b"V"])
def test_files_of_every_type_may_be_sparse(flag: bytes) -> None:
    named = {b"size": b"8", b"numblocks": b"1", b"map": b"1,3", b"name": b"real"}
    body = records(*((b"GNU.sparse." + key, value) for key, value in named.items()))
    member, content = only(body + block((156, flag), (124, b"%011o\0" % 3)) + b"abc".ljust(512, b"\0"))
    assert (member.name, member.size, member.holes, content) == (b"real", 8, Holes(8, ((1, 3),)), b"abc")


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"5"])
@pytest.mark.parametrize("version", [(b"0", b"1"), (b"1", b"0")])
def test_only_files_are_sparse(flag: bytes, version: tuple[bytes, bytes]) -> None:
    named = {b"size": b"0", b"numblocks": b"0", b"map": b"", b"major": version[0], b"minor": version[1]}
    body = records(*((b"GNU.sparse." + key, value) for key, value in named.items()))
    with pytest.raises(MalformedLayer):
        only(body + block((156, flag)))


@pytest.mark.parametrize(
    "named",
    [
        {b"size": b"8"},
        {b"name": b"other", b"realsize": b"8"},
        {b"major": b"2", b"minor": b"0", b"map": b"1,3"},
        {b"major": b"0", b"minor": b"2", b"map": b"1,3"},
        {b"major": b"1", b"map": b"1,3"},
    ],
)
def test_sparse_records_of_no_known_version_are_not_looked_at(named: dict[bytes, bytes]) -> None:
    body = records(*((b"GNU.sparse." + key, value) for key, value in named.items()))
    member, content = only(body + block((124, b"00000000003\0")) + b"abc".ljust(512, b"\0"))
    assert (member.name, member.holes, content) == (b"f", None, b"abc")


@pytest.mark.parametrize("flag", ["x", "L", "K"])
def test_a_stream_that_ends_after_an_extended_header_is_an_error(flag: str) -> None:
    long = entry("n" * 200, "link", link="l" * 200)
    raw = archive(long, format=tarfile.PAX_FORMAT if flag == "x" else tarfile.GNU_FORMAT)
    with pytest.raises(TruncatedStream):
        read(raw[: 1024 if flag != "K" else 2048])


@pytest.mark.parametrize(
    "body",
    [
        b"5 a=b",
        b"99 a=b\n",
        b"x a=b\n",
        b"+6 a=b\n",
        b"6 a=bc",
        b"5 =b\n",
        b"6 abc\n",
        b"0 \n",
        b"7 \0a=b\n",
        b"10 path=\0\n",
    ],
)
def test_broken_pax_records_are_an_error(body: bytes) -> None:
    with pytest.raises(MalformedLayer):
        decode_records(body)


@pytest.mark.parametrize("length", [b"+7", b"0" * 20 + b"27"])
def test_the_length_of_a_pax_record_may_have_a_sign_and_zeros(length: bytes) -> None:
    assert decode_records(length + b" a=b\n" + b"6 c=d\n") == [(b"a", b"b"), (b"c", b"d")]


def test_pax_bodies_padded_with_zeros_are_read() -> None:
    assert decode_records(b"6 a=b\n" + bytes(9)) == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (b"1", 10**9),
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"1.", 10**9),
        (b"1e-09", 1),
        (b"-0.0000000001", 0),
        (b"+1.5", 1_500_000_000),
        (b"1." + b"9" * 100, 1_999_999_999),
        (b"1.7e3", 1_700 * 10**9),
        (b"1.9999999999", 1_999_999_999),
    ],
)
def test_pax_times(text: bytes, ns: int) -> None:
    assert parse_time(text) == ns


@pytest.mark.parametrize("text", [b"", b"-", b".5", b"--1", b"1e999", b"nan", b"1 ", b"0x1", b"9" * 21])
def test_a_pax_time_that_is_none_is_an_error(text: bytes) -> None:
    with pytest.raises(MalformedLayer):
        parse_time(text)


@pytest.mark.parametrize("text", [b"", b"-1", b"1.0", b"9" * 21])
def test_a_pax_number_that_is_none_is_an_error(text: bytes) -> None:
    with pytest.raises(MalformedLayer):
        parse_number(b"uid", text)


def sparse(content: bytes, **records: str) -> bytes:
    if "map" in records:
        records = {"numblocks": str(records["map"].count(",") // 2 + 1)} | records
    return archive(entry("s", content=content, pax={"GNU.sparse." + key: value for key, value in records.items()}))


@pytest.mark.parametrize(
    "records",
    [
        {"map": "0,1,5", "size": "9"},
        {"map": "0,1", "size": "9", "numblocks": ""},
        {"map": "0,1", "size": "9", "numblocks": "2"},
        {"map": "0,1", "size": "9", "numblocks": "-1"},
        {"map": "8,0,0,1", "size": "9"},
        {"map": "0,1,10,0", "size": "9"},
        {"map": "", "major": "0", "minor": "1", "size": "9", "numblocks": ""},
        {"map": "5,1,0,1", "size": "9"},
        {"map": "0,2", "size": "9"},
        {"map": "0,1", "size": "0"},
        {"map": "8,3", "size": "9"},
        {"map": "0,x", "size": "9"},
        {"map": "0,2"},
        {"map": "0,1", "size": "-9"},
        {"map": "0,1", "size": str(1 << 63)},
        {"numbytes": "1", "offset": "0", "size": "9"},
        {"offset": "0", "size": "9"},
        {"name": "x\0y", "map": "0,1", "size": "9"},
    ],
)
def test_a_sparse_map_that_does_not_fit_is_an_error(records: dict[str, str]) -> None:
    with pytest.raises(LayerfarmError):
        read(sparse(b"x", **records))


@pytest.mark.parametrize("text", [b"x\n", b"1\n0\n", b"1" * 30 + b"\n", b"-1\n", b"2\n0\n3\n", b""])
def test_an_inline_sparse_map_that_breaks_the_format_is_an_error(text: bytes) -> None:
    with pytest.raises(LayerfarmError):
        read(sparse(text.ljust(512, b"\0") + b"abc", major="1", minor="0", realsize="100"))


def test_an_xattr_without_a_name_is_an_error() -> None:
    with pytest.raises(MalformedLayer, match="xattr has no name"):
        read(archive(entry("f", pax={"SCHILY.xattr.": "x"})))


def test_more_headers_than_are_remembered_are_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = archive(*(entry(f"f{n}", content=b"x" * n, uid=n, xattrs={"user.n": b"%d" % n}) for n in range(9)))
    expected = read(raw)
    assert [member.uid for member, _ in expected] == list(range(9))
    monkeypatch.setattr("layerfarm.jobs.tar.reader._NUMBERS_KEPT", 0)
    monkeypatch.setattr("layerfarm.jobs.tar.reader._HEADERS_KEPT", 0)
    assert read(raw) == expected


def test_sparse_limits() -> None:
    with pytest.raises(LimitExceeded, match="holes"):
        read(sparse(b"x", map="0,1", size=str(1 << 40)))
    with pytest.raises(LimitExceeded, match="areas"):
        read(sparse(b"3\n".ljust(512, b"\0"), major="1", minor="0", realsize="9"), Limits(sparse_parts=2))


def test_removing_a_tree_follows_no_link_and_leaves_what_is_beside(tmp_path: Path) -> None:
    tree(tmp_path, {"keep/f": file(b"x"), "gone/l": symlink("../keep"), "gone/a/b/c": file(), "gone/e": directory()})
    before = {path: node for path, node in read_tree(tmp_path).items() if path.startswith(b"keep")}
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        remove(here, b"gone")
        with pytest.raises(FileNotFoundError):
            remove(here, b"gone")
        assert read_tree(tmp_path).items() >= before.items()
        assert os.listdir(here) == ["keep"]
    finally:
        os.close(here)


def test_a_mount_point_in_the_way_is_an_error_that_names_the_entry(tmp_path: Path) -> None:
    import subprocess

    from tests.unit.layer.archives import apply

    root = tree(tmp_path / "root", {"d/m": directory(), "d/f": file()})
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "d/m"], check=True)
    try:
        with pytest.raises(LayerfarmError, match=r"busy: \.wh\.d$"):
            apply(root, archive(entry(".wh.d")))
    finally:
        subprocess.run(["umount", root / "d/m"], check=True)
