"""Read an mtree manifest of any dialect: umoci's and go-mtree's, NetBSD's, bsdtar's, and layerfarm's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, cast, get_args

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.lines import LineSource
from layerfarm.jobs.mtree.model import BILLION, ROOT, UNRECORDED, UNRECORDED_TIME, Entry, EntryType, Xattrs

_TYPES = frozenset(kind.encode() for kind in get_args(EntryType))
_KEYWORD = re.compile(rb"[A-Za-z][A-Za-z0-9_]*(?:\..+)?", re.DOTALL)
_UMOCI_SET = {b"type", b"uid", b"gid", b"mode", b"nlink"}
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_DEVICE_FORMATS = frozenset(
    b"native 386bsd 4bsd bsdos freebsd hpux isc linux netbsd osf1 sco solaris sunos svr3 svr4 ultrix".split()
)

# Lines of a umoci manifest, matched whole: files (nine of ten lines) and directories without xattrs. This takes a third
# of the time of splitting into keywords.
_OWNER_TO_TIME = (
    rb"(?: uid=(\d{1,10}))?(?: gid=(\d{1,10}))?(?: mode=([0-7]{1,5}))?"
    rb"(?: nlink=(\d{1,10}))? tar_time=(-?\d{1,20})\.0{9}"
)
_UMOCI_FILE = re.compile(rb"    ([!-\[\]-~]+) size=(\d{1,19})" + _OWNER_TO_TIME + rb" sha256digest=([0-9a-f]{64})")
_UMOCI_DIRECTORY = re.compile(rb"([!-.0-\[\]-~]+) size=(\d{1,19}) type=dir" + _OWNER_TO_TIME + rb"()")


def read_manifest(stream: BinaryIO) -> Iterator[Entry]:
    """Yield the entries of a manifest, in its own order.

    Values that a manifest does not record are None, UNRECORDED or UNRECORDED_TIME, and are not compared. An entry
    without xattr keywords has none if it is a file or directory of a manifest that declares to record them, as umoci's
    do; else its xattrs are None.

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
    """Return the entries of a manifest, completed from its extra file.

    Without one (a bundle made by umoci), values that the manifest could not record stay None.

    Raises:
        MtreeSyntaxError: a line of either does not parse.
        MtreeError: the extra file belongs to another manifest.
    """
    entries = read_manifest(manifest)
    return entries if extra is None else _completed(entries, read_manifest(extra))


def _completed(entries: Iterator[Entry], extras: Iterator[Entry]) -> Iterator[Entry]:
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
    """Parses the lines of one manifest in order; its state is the current directory and /set."""

    def __init__(self, lines: LineSource) -> None:
        self._lines = lines
        self._set: dict[bytes, bytes] = {}
        self._directory: bytes | None = b""
        """The path of the current directory, empty for the root, None above it."""
        self._prefix = b""
        self._records_xattrs = False
        self._defaults: tuple[int, int, int, int] | None = None
        """uid, gid, mode and nlink of /set; None: a file's line cannot be matched whole."""

    def line(self, line: bytes) -> Entry | None:
        """Return the entry of a line; None for a comment, ``..``, /set or /unset."""
        if not line:
            return None
        if self._defaults is not None:
            found = _UMOCI_FILE.fullmatch(line)
            if found is not None:
                name = found[1]
                if b"/" in name or name == b"..":
                    raise MtreeSyntaxError("not the name of an entry")
                return self._umoci_entry(self._prefix + name, "file", found)
            found = _UMOCI_DIRECTORY.fullmatch(line)
            if found is not None and self._directory is not None and found[1] not in (b".", b".."):
                path = self._prefix + found[1]
                self._enter(path)
                return self._umoci_entry(path, "dir", found)
        return self._any_line(line)

    def plain_file(self, line: bytes) -> tuple[bytes, int, int] | None:
        """Return path and default uid and gid of a file's whole line in umoci's form; None for any other line."""
        if self._defaults is None:
            return None
        found = _UMOCI_FILE.fullmatch(line)
        if found is None or b"/" in found[1] or found[1] == b"..":
            return None
        return self._prefix + found[1], self._defaults[0], self._defaults[1]

    def _umoci_entry(self, path: bytes, kind: EntryType, found: re.Match[bytes]) -> Entry:
        _, size, uid, gid, mode, nlink, seconds, digest = found.groups()
        assert self._defaults is not None
        default_uid, default_gid, default_mode, default_nlink = self._defaults
        return tuple.__new__(
            Entry,
            (
                path,
                kind,
                default_mode if mode is None else int(mode, 8),
                default_uid if uid is None else int(uid),
                default_gid if gid is None else int(gid),
                int(size),
                default_nlink if nlink is None else int(nlink),
                int(seconds) * BILLION,
                None,
                digest.decode("ascii") or None,
                (),
                None,
            ),
        )

    def _any_line(self, line: bytes) -> Entry | None:
        tokens = line.split()
        if not tokens:
            return None
        first = tokens[0]
        if first.startswith(b"#"):
            self._comment(line, tokens)
            return None
        # An even number of backslashes at the end is that many escaped ones.
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
        """Return the path of an entry, and True if it is relative to the current directory."""
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
            raise MtreeSyntaxError("entry after the end of the tree")
        if name == ROOT:
            if self._directory:
                raise MtreeSyntaxError("root entry below another directory")
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
            _device(values[b"device"]) if b"device" in values and kind in (b"char", b"block") else None,
        )

    def _xattrs(self, tokens: list[bytes], kind: bytes) -> Xattrs | None:
        # Not the first: a file may be called xattr.user.x=.
        found = [vis.parse_xattr(token[6:]) for token in tokens[1:] if token.startswith(b"xattr.")]
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
    """Return the nanoseconds of ``seconds[.nanoseconds]``; the text after the dot is a number, not a fraction.

    NetBSD's and bsdtar's manifests say ``1.5`` for five nanoseconds; go-mtree pads to nine digits.
    """
    text = values.get(b"tar_time") or values.get(b"time")
    if text is None:
        return UNRECORDED_TIME
    seconds, dot, nanoseconds = text.partition(b".")
    if not dot:
        return int(seconds) * BILLION
    if not nanoseconds.isdigit() or len(nanoseconds) > 9:
        raise ValueError(f"not a time: {text!r}")
    return int(seconds) * BILLION + int(nanoseconds)


def _device(text: bytes) -> tuple[int, int]:
    """Major and minor in layerfarm's (``8:1``), bsdtar's (``native,8,1``) or NetBSD's (one number) form."""
    if b":" in text:
        major, minor = text.split(b":")
        return int(major), int(minor)
    if b"," in text:
        kind, major, minor = text.split(b",")
        if kind not in _DEVICE_FORMATS:
            raise ValueError(f"not a device format: {kind!r}")
        return int(major, 0), int(minor, 0)
    number = int(text, 0)
    if not 0 <= number < 1 << 64:
        raise ValueError("not a device number")
    return os.major(number), os.minor(number)


def _digest(values: dict[bytes, bytes]) -> str | None:
    text = values.get(b"sha256digest") or values.get(b"sha256")
    if text is None:
        return None
    if _DIGEST.fullmatch(text) is None:
        raise MtreeSyntaxError("not a sha256 digest")
    return text.decode("ascii")
