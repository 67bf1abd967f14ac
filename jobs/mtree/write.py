"""Write a tree as umoci writes the manifest of a bundle, and values that this form cannot hold to the *extra file*."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO, Final, NamedTuple

from layerfarm.jobs.errors import MtreeError
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.fragments import parse_line
from layerfarm.jobs.mtree.model import BILLION, ROOT, Entry, Xattrs
from layerfarm.jobs.mtree.vis import xattr_keywords

KEYWORDS: Final = "size,type,uid,gid,mode,link,nlink,tar_time,sha256digest,xattr"
"""The keywords of a umoci manifest, in its order."""

# No date, user, host or tree, as go-mtree has them: the same tree gives the same bytes (law 1, docs/architecture.md).
_HEADER = f"#mtree\n#          tool: layerfarm\n#      keywords: {KEYWORDS}\n"
_EXTRA_HEADER = b"#mtree\n#          tool: layerfarm\n#      keywords: type,device,xattr\n"

# go-mtree reads the list of xattrs, and each value, into a buffer of 1024 bytes, and takes an entry for
# which that fails as having none (umoci.md D, limit 1).
_XATTR_BUFFER = 1024
# bufio.Scanner, which go-mtree reads a manifest with, limits the length of a line (limit 7).
_LONGEST_LINE = 65_535
_LONGEST_XATTRS = 64_000  # leaves room for the name, of 255 bytes at most, and the other keywords
_FLUSH_LINES = 1024


class Output(NamedTuple):
    """The files of one form of a tree."""

    manifest: BinaryIO
    extra: BinaryIO | None = None
    """Receives what the manifest cannot hold; None: not wanted."""
    adapt: Callable[[Entry], Entry | None] | None = None
    """Returns the entry to write, with the same path, type and owner; None: left out. Default: the tree as on disk."""


def write_tree(entries: Iterable[Entry], first: Output, second: Output | None = None) -> int:
    """Write a whole tree, given in mtree order, in one or two forms; return the entries of the first.

    Raises:
        MtreeError: an entry does not follow its directory.
    """
    writer = TreeWriter(first, second)
    for entry in entries:
        writer.entry(entry)
    return writer.close()


def write_lines(lines: Iterable[bytes], first: Output, second: Output | None = None) -> int:
    """:func:`write_tree` of lines of fragments, in half the time: a file without xattrs is not parsed.

    Such a file must have the same line in both forms: ``adapt`` may change only the part of a second in its mtime.

    Raises:
        MtreeError: an entry does not follow its directory.
        MtreeSyntaxError: a line is damaged.
    """
    writer = TreeWriter(first, second)
    for line in lines:
        if not writer.file(line):
            writer.entry(parse_line(line))
    return writer.close()


def write_extra(entries: Iterable[Entry], out: BinaryIO) -> None:
    """Write the values of the entries that their manifest cannot hold."""
    out.write(_EXTRA_HEADER)
    for entry in entries:
        _write_extra_line(entry, out)


def _write_extra_line(entry: Entry, out: BinaryIO) -> None:
    """Write a full-path line if needed: for a device number, for xattrs of a link, device, fifo or socket, and for too
    many or too large xattrs.
    """
    xattrs = entry.xattrs
    if entry.type in ("file", "dir"):
        if not xattrs or _recordable(xattrs):
            return
    elif not xattrs and entry.device is None:
        return
    name = "." if entry.path == ROOT else "./" + vis.encode(entry.path).decode("ascii")
    device = "" if entry.device is None else f" device={entry.device[0]}:{entry.device[1]}"
    out.write(f"{name} type={entry.type}{device}{xattr_keywords(xattrs or ())}\n".encode("ascii"))


class TreeWriter:
    """Writes one or two forms of a tree. Lines that are the same in both are formatted once.

    An entry that the first output leaves out is not in the second either.
    """

    def __init__(self, first: Output, second: Output | None = None) -> None:
        outputs = (first,) if second is None else (first, second)
        self._first = first
        self._second = second
        self._manifest = ManifestWriter(*(output.manifest for output in outputs))
        self._count = 0
        for output in outputs:
            if output.extra is not None:
                output.extra.write(_EXTRA_HEADER)

    def entry(self, entry: Entry) -> None:
        """Write the next entry, in mtree order.

        Raises:
            MtreeError: it does not follow its directory.
        """
        adapted = entry if self._first.adapt is None else self._first.adapt(entry)
        if adapted is None:
            return
        self._count += 1
        second = self._second
        twin = None if second is None else entry if second.adapt is None else second.adapt(entry)
        self._manifest.entry(adapted, twin)
        if entry.device is not None or entry.xattrs:
            if self._first.extra is not None:
                _write_extra_line(adapted, self._first.extra)
            if second is not None and second.extra is not None and twin is not None:
                _write_extra_line(twin, second.extra)

    def file(self, line: bytes) -> bool:
        """:meth:`ManifestWriter.file`, for an entry that no output adapts."""
        written = self._manifest.file(line)
        self._count += written
        return written

    def line(self, line: bytes, uid: int, gid: int) -> bool:
        """:meth:`ManifestWriter.line`, for an entry that no output adapts."""
        written = self._manifest.line(line, uid, gid)
        self._count += written
        return written

    def close(self) -> int:
        """Write the end of the files, which stay open; return the entries of the first output."""
        self._manifest.finish()
        return self._count


class ManifestWriter:
    """Writes the indented form; its state is the open directories and /set.

    Byte for byte as umoci, except for the header comments, the order of an entry's xattrs (sorted; umoci takes the file
    system's order) and the comment above a directory with a line break in its path: umoci does not encode the path, and
    its own reader then takes the rest for an entry.
    """

    def __init__(self, *outs: BinaryIO) -> None:
        self._outs = outs
        self._lines: tuple[list[str], ...] = tuple([_HEADER] for _ in outs)
        """For each output; only the lines of some entries differ."""
        self._open: list[bytes] = []
        self._directory = b""
        self._uid = -1
        self._gid = -1
        self._prefix: tuple[str, bytes] = ("", b"")
        """Directory of the last :meth:`file`, encoded and raw."""

    def entry(self, entry: Entry, twin: Entry | None = None) -> None:
        """Write one entry; they come in mtree order, the root first.

        ``twin`` goes to the second output: the same entry, or one with its path, type and owner; None: no line there.

        Raises:
            MtreeError: it does not follow its directory.
        """
        path = entry.path
        head, _, name = path.rpartition(b"/")
        if entry.type == "dir":
            self._enter(path, head, entry.uid, entry.gid)
            encoded = vis.encode(name).decode("ascii")
        else:
            if head != self._directory or not self._open:
                self._return_to(head, path)
            encoded = "    " + vis.encode(name).decode("ascii")
        line = self._line(encoded, entry)
        self._lines[0].append(line)
        if twin is not None:
            self._lines[1].append(line if twin is entry else self._line(encoded, twin))
        if len(self._lines[0]) > _FLUSH_LINES:
            self._flush()

    def file(self, line: bytes) -> bool:
        """Write a regular file's line of a fragment (:mod:`layerfarm.jobs.mtree.fragments`).

        Return False, and write nothing, if it is not one, or if the file has xattrs.

        Raises:
            MtreeError: it does not follow its directory.
        """
        name, kind, *fields = line.decode("ascii").split(" ")
        if kind != "type=file" or len(fields) != 7:
            return False
        mode, uid, gid, size, nlink, time, digest = fields
        if time[:5] != "time=" or digest[:13] != "sha256digest=" or digest[-1] != "\n":
            return False
        head, _, base = name.rpartition("/")
        if head != self._prefix[0]:
            self._prefix = head, vis.decode(head[2:].encode("ascii"))
        if self._prefix[1] != self._directory or not self._open:
            self._return_to(self._prefix[1], vis.decode(name[2:].encode("ascii")))
        self._all(
            f"    {base} {size}{'' if int(uid[4:]) == self._uid else ' ' + uid}"
            f"{'' if int(gid[4:]) == self._gid else ' ' + gid}"
            f"{'' if mode == 'mode=0664' else ' mode=0' if mode == 'mode=00' else ' ' + mode}"
            f"{'' if nlink == 'nlink=1' else ' ' + nlink} tar_{time[:-10]}.000000000 {digest}"
        )
        if len(self._lines[0]) > _FLUSH_LINES:
            self._flush()
        return True

    def line(self, line: bytes, uid: int, gid: int) -> bool:
        """Write a non-directory's line of another manifest, where /set has this uid and gid.

        Return False, and write nothing, if the line would have another meaning here.
        """
        if uid != self._uid or gid != self._gid:
            return False
        self._all(line.decode("ascii") + "\n")
        if len(self._lines[0]) > _FLUSH_LINES:
            self._flush()
        return True

    def finish(self) -> None:
        """Write the end of the manifest; the files stay open."""
        self._close_directories(0)
        self._flush()

    def _all(self, line: str) -> None:
        for lines in self._lines:
            lines.append(line)

    def _flush(self) -> None:
        for lines, out in zip(self._lines, self._outs, strict=True):
            out.write("".join(lines).encode("utf-8", "surrogateescape"))
            lines.clear()

    def _line(self, name: str, entry: Entry) -> str:
        _, kind, mode, uid, gid, size, nlink, mtime, link, sha256, xattrs, _ = entry
        line = (
            f"{name} size={size}{'' if kind == 'file' else ' type=' + kind}"
            f"{'' if uid == self._uid else f' uid={uid}'}{'' if gid == self._gid else f' gid={gid}'}"
            f"{'' if mode == 0o664 else f' mode=0{mode:o}' if mode else ' mode=0'}"
            f"{'' if link is None else ' link=' + vis.encode(link).decode('ascii')}"
            f"{'' if nlink == 1 else f' nlink={nlink}'} tar_time={mtime // BILLION}.000000000"
            f"{'' if sha256 is None else ' sha256digest=' + sha256}"
        )
        if xattrs and (kind == "file" or kind == "dir"):
            line += _recordable(xattrs)
        return line + "\n"

    def _enter(self, path: bytes, head: bytes, uid: int, gid: int) -> None:
        if path == ROOT:
            if self._open:
                raise MtreeError("tree has two roots")
            self._directory = b""
        else:
            self._return_to(head, path)
            self._directory = path
        self._open.append(path)
        self._all(f"\n# {_comment(path)}\n")
        if uid != self._uid or gid != self._gid:
            self._uid, self._gid = uid, gid
            self._all(f"/set type=file nlink=1 mode=0664 uid={uid} gid={gid}\n")

    def _return_to(self, head: bytes, path: bytes) -> None:
        """Close directories until ``head`` is the current one."""
        depth = len(self._open)
        while depth and self._open[depth - 1] != (head or ROOT):
            depth -= 1
        if not depth:
            raise MtreeError("entry does not follow its directory", where=path)
        self._close_directories(depth)
        self._directory = head

    def _close_directories(self, depth: int) -> None:
        """Write the ``..`` of every open directory below ``depth``."""
        for lines in self._lines:
            lines.extend(["..\n"] * (len(self._open) - depth))
        del self._open[depth:]


def _recordable(xattrs: Xattrs) -> str:
    """Return the xattr keywords that umoci itself would have recorded and can read again: all or none."""
    names = sum(len(name) + 1 for name, _ in xattrs)
    if names > _XATTR_BUFFER or any(len(value) > _XATTR_BUFFER for _, value in xattrs):
        return ""
    text = xattr_keywords(xattrs, exact=False)
    return text if len(text) <= _LONGEST_XATTRS else ""


def _comment(path: bytes) -> str:
    if b"\n" in path:
        path = vis.encode(path)
    return path.decode("utf-8", "surrogateescape") if len(path) < _LONGEST_LINE - 2 else "..."
