"""Read an mtree manifest of any dialect: umoci's and go-mtree's, NetBSD's, bsdtar's, and our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.keywords import BILLION, parse_device, parse_time, parse_xattr
from layerfarm.jobs.mtree.lines import LineSource
from layerfarm.jobs.mtree.model import ROOT, UNRECORDED, UNRECORDED_TIME, Entry, EntryType, Xattrs

_TYPES = frozenset((b"file", b"dir", b"link", b"char", b"block", b"fifo", b"socket"))
_KEYWORD = re.compile(rb"[A-Za-z][A-Za-z0-9_]*(?:\..+)?", re.DOTALL)
_UMOCI_SET = {b"type", b"uid", b"gid", b"mode", b"nlink"}
_DIGEST = re.compile(rb"[0-9a-f]{64}")

# A file of a umoci manifest, the whole line at once: nine lines of ten. Reading 136,000 entries so takes
# a third of the time that splitting into keywords takes.
_UMOCI_FILE = re.compile(
    rb"    ([!-\[\]-~]+) size=(\d{1,19})(?: uid=(\d{1,10}))?(?: gid=(\d{1,10}))?(?: mode=([0-7]{1,5}))?"
    rb"(?: nlink=(\d{1,10}))? tar_time=(-?\d{1,20})\.0{9} sha256digest=([0-9a-f]{64})"
)
# A directory without xattrs, of which every tenth line is one.
_UMOCI_DIRECTORY = re.compile(
    rb"([!-.0-\[\]-~]+) size=(\d{1,19}) type=dir(?: uid=(\d{1,10}))?(?: gid=(\d{1,10}))?(?: mode=([0-7]{1,5}))?"
    rb"(?: nlink=(\d{1,10}))? tar_time=(-?\d{1,20})\.0{9}"
)


def read_manifest(stream: BinaryIO) -> Iterator[Entry]:
    """The entries of a manifest, in its own order.

    What a manifest does not record is None, UNRECORDED or UNRECORDED_TIME, and is not compared. No xattrs
    recorded means none for the files and directories of a manifest that says that it records them, as
    umoci's do; it means None otherwise, and always for a link, device, fifo or socket.

    Raises:
        MtreeSyntaxError: a line does not parse; the message has its number.
    """
    lines = LineSource(stream)
    reader = LineReader(lines)
    try:
        for line in lines:
            entry = reader.line(line)
            if entry is not None:
                yield entry
    except (MtreeSyntaxError, ValueError) as error:
        what = error.what if isinstance(error, MtreeSyntaxError) else "value does not fit its keyword"
        raise MtreeSyntaxError(f"line {lines.number} of the manifest: {what}", where=lines.current[:200]) from error


def read_full(manifest: BinaryIO, extra: BinaryIO | None) -> Iterator[Entry]:
    """The entries of a manifest together with what is recorded beside it.

    Without an extra file (a bundle made by umoci) what the manifest could not record stays None.

    Raises:
        MtreeSyntaxError: a line of either does not parse.
        MtreeError: the extra file belongs to another manifest.
    """
    entries = read_manifest(manifest)
    return entries if extra is None else _join(entries, read_manifest(extra))


def _join(entries: Iterator[Entry], extras: Iterator[Entry]) -> Iterator[Entry]:
    extra = next(extras, None)
    for entry in entries:
        if extra is not None and extra.path == entry.path:
            if extra.type != entry.type:
                break
            yield entry._replace(xattrs=extra.xattrs or (), device=extra.device)
            extra = next(extras, None)
        elif entry.xattrs is None:
            yield entry._replace(xattrs=())
        else:
            yield entry
    if extra is not None:
        raise MtreeError("the extra file belongs to another manifest", where=extra.path)


class LineReader:
    """The state between the lines: the current directory and what /set says."""

    def __init__(self, lines: LineSource) -> None:
        self._lines = lines
        self._set: dict[bytes, bytes] = {}
        self._directory: bytes | None = b""
        """The path of the current directory, empty for the root, None above it."""
        self._prefix = b""
        self._records_xattrs = False
        self._defaults: tuple[int, int, int, int] | None = None
        """uid, gid, mode and nlink as /set says; None: a file's line cannot be read at once."""

    def line(self, line: bytes) -> Entry | None:
        """The entry of a line, if it is one of an entry."""
        if not line:
            return None
        if self._defaults is not None:
            found = _UMOCI_FILE.fullmatch(line)
            if found is not None:
                return self._umoci_file(found)
            found = _UMOCI_DIRECTORY.fullmatch(line)
            if found is not None and self._directory is not None and found[1] not in (b".", b".."):
                return self._umoci_directory(found)
        return self._any_line(line)

    def plain_file(self, line: bytes) -> tuple[bytes, int, int] | None:
        """Path and default uid and gid of a line that says in umoci's way all there is to say of a file."""
        if self._defaults is None:
            return None
        found = _UMOCI_FILE.fullmatch(line)
        if found is None or b"/" in found[1] or found[1] == b"..":
            return None
        return self._prefix + found[1], self._defaults[0], self._defaults[1]

    def _umoci_file(self, found: re.Match[bytes]) -> Entry:
        name, size, uid, gid, mode, nlink, seconds, digest = found.groups()
        assert self._defaults is not None
        default_uid, default_gid, default_mode, default_nlink = self._defaults
        if b"/" in name or name == b"..":
            raise MtreeSyntaxError("not the name of an entry")
        return tuple.__new__(
            Entry,
            (
                self._prefix + name,
                "file",
                default_mode if mode is None else int(mode, 8),
                default_uid if uid is None else int(uid),
                default_gid if gid is None else int(gid),
                int(size),
                default_nlink if nlink is None else int(nlink),
                int(seconds) * BILLION,
                None,
                digest.decode("ascii"),
                (),
                None,
            ),
        )

    def _umoci_directory(self, found: re.Match[bytes]) -> Entry:
        name, size, uid, gid, mode, nlink, seconds = found.groups()
        assert self._defaults is not None
        default_uid, default_gid, default_mode, default_nlink = self._defaults
        path = self._prefix + name
        self._enter(path)
        return Entry(
            path,
            "dir",
            default_mode if mode is None else int(mode, 8),
            default_uid if uid is None else int(uid),
            default_gid if gid is None else int(gid),
            int(size),
            default_nlink if nlink is None else int(nlink),
            int(seconds) * BILLION,
        )

    def _any_line(self, line: bytes) -> Entry | None:
        tokens = line.split()
        if not tokens:
            return None
        first = tokens[0]
        if first.startswith(b"#"):
            self._comment(line, tokens)
            return None
        # An even number of backslashes at the end is so many escaped ones.
        while (len(line) - len(line.rstrip(b"\\"))) % 2:
            line = line[:-1] + b" " + self._lines.continuation()
            tokens = line.split()
        if first == b"..":
            self._up()
            return None
        if first.startswith(b"/"):
            self._special(tokens)
            return None
        path, relative = self._path(first)
        entry = self._entry(path, tokens)
        if relative and entry.type == "dir":
            self._enter(b"" if path == ROOT else path)
        return entry

    def _comment(self, line: bytes, tokens: list[bytes]) -> None:
        if len(tokens) == 3 and tokens[1] == b"keywords:":
            keywords = tokens[2].split(b",")
            self._records_xattrs = b"xattr" in keywords or b"xattrs" in keywords
        elif self._directory is not None and line.startswith(b"# "):
            self._lines.skip_rest_of_comment(line[2:], self._prefix)

    def _up(self) -> None:
        if self._directory is None:
            raise MtreeSyntaxError("'..' leads out of the tree")
        if not self._directory:
            self._directory = None
            return
        self._enter(self._directory.rpartition(b"/")[0])

    def _enter(self, directory: bytes) -> None:
        self._directory = directory
        self._prefix = directory + b"/" if directory else b""

    def _special(self, tokens: list[bytes]) -> None:
        if tokens[0] == b"/set":
            self._set.update(_keywords(tokens))
        elif tokens[0] == b"/unset":
            for token in tokens[1:]:
                if token == b"all":
                    self._set.clear()
                self._set.pop(token, None)
        else:
            raise MtreeSyntaxError("only /set and /unset may begin with a slash")
        values = self._set
        self._defaults = None
        if self._records_xattrs and values.keys() == _UMOCI_SET and values[b"type"] == b"file":
            self._defaults = (
                int(values[b"uid"]),
                int(values[b"gid"]),
                int(values[b"mode"], 8),
                int(values[b"nlink"]),
            )

    def _path(self, text: bytes) -> tuple[bytes, bool]:
        """The path of an entry, and whether it was given relative to the current directory."""
        name = vis.decode(text)
        if b"\0" in name or name.count(b"/") != text.count(b"/"):
            raise MtreeSyntaxError("not the name of an entry")
        if b"/" in text:
            parts = [part for part in name.split(b"/") if part not in (b"", b".")]
            if b".." in parts:
                raise MtreeSyntaxError("path leads out of the tree")
            return b"/".join(parts) or ROOT, False
        if name in (b"", b".."):
            raise MtreeSyntaxError("not the name of an entry")
        if self._directory is None:
            raise MtreeSyntaxError("entry stands after the end of the tree")
        if name == ROOT:
            if self._directory:
                raise MtreeSyntaxError("the root stands below another directory")
            return ROOT, True
        return self._prefix + name, True

    def _entry(self, path: bytes, tokens: list[bytes]) -> Entry:
        values = self._set | _keywords(tokens)
        kind = values.get(b"type")
        if kind is None:
            raise MtreeSyntaxError("entry has no type")
        if kind not in _TYPES:
            raise MtreeSyntaxError("unknown type of entry")
        link = values.get(b"link")
        return Entry(
            path,
            cast(EntryType, kind.decode("ascii")),
            _number(values, b"mode", 8),
            _number(values, b"uid"),
            _number(values, b"gid"),
            _number(values, b"size"),
            _number(values, b"nlink"),
            _time(values),
            vis.decode(link) if link is not None and kind == b"link" else None,
            _digest(values) if kind == b"file" else None,
            self._xattrs(tokens, kind),
            parse_device(values[b"device"]) if b"device" in values and kind in (b"char", b"block") else None,
        )

    def _xattrs(self, tokens: list[bytes], kind: bytes) -> Xattrs | None:
        # Not the first: a file may be called xattr.user.x=.
        found = [parse_xattr(token[6:]) for token in tokens[1:] if token.startswith(b"xattr.")]
        if found:
            return tuple(sorted(found))
        return () if self._records_xattrs and kind in (b"file", b"dir") else None


def _keywords(tokens: list[bytes]) -> dict[bytes, bytes]:
    values = {}
    for token in tokens[1:]:
        keyword, _, value = token.partition(b"=")
        if _KEYWORD.fullmatch(keyword) is None:
            raise MtreeSyntaxError("not a keyword")
        values[keyword] = value
    return values


def _number(values: dict[bytes, bytes], keyword: bytes, base: int = 10) -> int:
    text = values.get(keyword)
    if text is None:
        return UNRECORDED
    if not text.isdigit():
        raise MtreeSyntaxError(f"{keyword.decode('ascii')} is not a number")
    return int(text, base)


def _time(values: dict[bytes, bytes]) -> int:
    text = values.get(b"tar_time") or values.get(b"time")
    return UNRECORDED_TIME if text is None else parse_time(text)


def _digest(values: dict[bytes, bytes]) -> str | None:
    text = values.get(b"sha256digest") or values.get(b"sha256")
    if text is None:
        return None
    if _DIGEST.fullmatch(text) is None:
        raise MtreeSyntaxError("not a sha256 digest")
    return text.decode("ascii")
