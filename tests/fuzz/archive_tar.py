"""The reader of layers beside Go's archive/tar, which most builders and runtimes read layers with.

Both read the same archive. Each entry must have the same name, link, type, mode, owner, times, device, xattrs, size and
content in both, and reading must end at the same place, with an error in both or in neither. Names of owners are not
compared: layers are applied by number, and the reader leaves the names out. TOLERANCES lists the differences that are
deliberate, each with its reason; they are counted by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from layerfarm.jobs.compress.toc.describe import Undescribable, described
from layerfarm.jobs.compress.toc.entries import TocEntry
from layerfarm.jobs.errors import LayerfarmError, LimitExceeded, MalformedLayer
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.header import number
from layerfarm.jobs.tar.reader import Member, MemberReader

SOURCE: Final = Path(__file__).with_suffix(".go")
_CACHE: Final = Path(__file__).parents[2] / ".cache" / "go"
ALONE: Final = {"GO111MODULE": "off", "GOFLAGS": "", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
"""Go builds what is here, with its own library, and asks no network."""
_MOST: Final = 2 << 20
"""Bytes of one file's content that Go reads: more than the limits of the fuzzer let the reader read."""
_LENGTH: Final = struct.Struct(">I")
_BLOCK: Final = 512
_REGULAR: Final = "07S"
"""Types that the reader reports as 0: kinds of regular files, whose peculiarities it has handled."""
_HEADER_ONLY: Final = "123456"
_DEVICES: Final = "34"
_MODE_BITS: Final = 0o7777
_HIGHEST: Final = 1 << 63
_SECOND: Final = 10**9
_ZERO_TIME: Final = -62_135_596_800 * _SECOND
"""The first second of the year 1, which to Go is no time at all."""
_EXPONENT: Final = re.compile(rb"[0-9]+ [amc]time=-?[0-9]+(\.[0-9]*)?e[+-]?[0-9]{1,2}\n")
_NO_ERROR: Final = ""


class ToolMissing(Exception):
    """Go is not installed."""


class Entry(NamedTuple):
    """One entry as both describe it; bytes as the characters U+0000 to U+00FF, times in nanoseconds."""

    name: str
    link: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    atime: int | None
    device: tuple[int, int]
    xattrs: dict[str, str]
    sha256: str


class Reading(NamedTuple):
    """The entries that could be read whole, and why reading ended before the archive did; "" if it did not."""

    entries: list[Entry]
    error: str
    described: Sequence[dict[str, Any]] = ()
    """The fields of a table of contents (:class:`~layerfarm.jobs.compress.toc.entries.TocEntry`)."""


class Difference(NamedTuple):
    """The first place where the two readers differ; None for an entry: reading ended there."""

    ours: Entry | None
    theirs: Entry | None
    refusal: LayerfarmError | None
    their_error: str
    archive: bytes


def _limits(found: Difference) -> bool:
    """Layers are hostile and bounded; Go's reader leaves that to its caller."""
    return isinstance(found.refusal, LimitExceeded)


def _negative(found: Difference) -> bool:
    """Owners, modes and devices are unsigned; chown(2) takes -1 for "leave as it is", so the file would be root's."""
    theirs = found.theirs
    if theirs is None or not _refused_with(found, "negative number"):
        return False
    return min(theirs.mode, theirs.uid, theirs.gid, *theirs.device) < 0


def _nameless(found: Difference) -> bool:
    """An entry without a name would be applied to the root directory."""
    return _refused_with(found, "has no name") and found.theirs is not None and found.theirs.name == ""


def _nameless_xattr(found: Difference) -> bool:
    """No filesystem has such an attribute: setxattr(2) fails."""
    return _refused_with(found, "xattr has no name") and found.theirs is not None and "" in found.theirs.xattrs


def _nul_in_sparse_name(found: Difference) -> bool:
    """No path has a NUL: open(2) would see another name, or Go's os package refuses it."""
    return _refused_with(found, "holds a NUL: GNU.sparse.name")


def _dangling(found: Difference) -> bool:
    """A stream that ends between an extended header and its entry has been cut."""
    return _refused_with(found, "ends after an extended header") and found.theirs is None


def _nul_padding(found: Difference) -> bool:
    """Records that end in NULs have one meaning only."""
    return bool(found.their_error) and any(body.endswith(b"\0") for body in _extended_bodies(found.archive))


def _exponent(found: Difference) -> bool:
    """Python's tarfile writes times below 0.0001 so."""
    return bool(found.their_error) and any(map(_EXPONENT.search, _extended_bodies(found.archive)))


TOLERANCES: Final[dict[str, Callable[[Difference], bool]]] = {
    "limit exceeded": _limits,
    "negative number": _negative,
    "entry without a name": _nameless,
    "xattr without a name": _nameless_xattr,
    "NUL in a sparse name": _nul_in_sparse_name,
    "cut after an extended header": _dangling,
    "PAX records padded with NULs": _nul_padding,
    "PAX time with an exponent": _exponent,
}


def _refused_with(found: Difference, text: str) -> bool:
    return found.refusal is not None and text in str(found.refusal)


def _extended_bodies(archive: bytes) -> Iterator[bytes]:
    """Yield the body of every block that may be a PAX header."""
    for at in range(0, len(archive) - _BLOCK, _BLOCK):
        if archive[at + 156] in b"xg":
            with suppress(MalformedLayer):
                size = number(archive[at + 124 : at + 136])
                yield archive[at + _BLOCK : at + _BLOCK + max(size, 0)]


# --- the oracle ----------------------------------------------------------------------------------


class Oracle:
    """A program that reads archives as they come. It is built once, and each process starts one of its own."""

    def __init__(self) -> None:
        self._program: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def build(self) -> None:
        """Compile the program, in some 3 s where Go brings its library compiled, else 30 s once.

        Raises:
            ToolMissing: Go is not installed.
        """
        if self._program is not None:
            return
        go = shutil.which("go")
        if go is None:
            raise ToolMissing("the target gotar needs Go (Debian: golang-go)")
        _CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = _CACHE / f"archive_tar.{os.getpid()}"
        environment = os.environ | ALONE | {"GOCACHE": str(_CACHE / "build")}
        subprocess.run([go, "build", "-o", unfinished, SOURCE], env=environment, check=True)
        program = _CACHE / "archive_tar"
        unfinished.rename(program)
        self._program = program

    def start(self) -> None:
        """Start the program; it ends when this process closes its input."""
        assert self._program is not None, "build() comes first"
        environment = {"GOMAXPROCS": "1", "GOGC": "400"}
        command = [str(self._program), str(_MOST)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def stop(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def read(self, archive: bytes) -> Reading:
        """Read the archive with Go."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(_LENGTH.pack(len(archive)) + archive)
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise AssertionError("the program that reads with archive/tar has ended")
        answer = json.loads(line)
        found = answer["Entries"]
        return Reading(
            [_of_go(entry) for entry in found], answer["Error"], [_described_by_go(entry) for entry in found]
        )


def _of_go(found: dict[str, Any]) -> Entry:
    kind, atime = found["Type"], found["Atime"]
    return Entry(
        found["Name"],
        found["Link"],
        "0" if kind in _REGULAR else kind,
        found["Mode"] & _MODE_BITS if found["Mode"] >= 0 else found["Mode"],
        found["Uid"],
        found["Gid"],
        0 if kind in _HEADER_ONLY else found["Size"],
        _nanoseconds(found["Mtime"]),
        None if atime is None else _nanoseconds(atime),
        (found["Major"], found["Minor"]) if kind in _DEVICES else (0, 0),
        found["Xattrs"],
        found["Sha256"],
    )


def _described_by_go(found: dict[str, Any]) -> dict[str, Any]:
    toc = found["Toc"]
    return {
        "name": found["Name"],
        "link": found["Link"],
        "mode": found["Mode"],
        "size": found["Size"],
        "uid": found["Uid"],
        "gid": found["Gid"],
        "mtime": toc["Mtime"],
        "atime": toc["Atime"],
        "ctime": toc["Ctime"],
        "major": found["Major"],
        "minor": found["Minor"],
        "xattrs": toc["Xattrs"],
    }


def _nanoseconds(time: list[int]) -> int:
    seconds, rest = time
    return seconds * _SECOND + rest


# --- the reader ----------------------------------------------------------------------------------


def read_ours(
    archive: bytes, limits: Limits, described_too: list[TocEntry | None] | None = None
) -> tuple[list[Entry], LayerfarmError | None]:
    """Read the archive with the reader of layers: its entries, and the error with which it ends.

    ``described_too`` receives each entry as a table of contents describes it, None where none can.
    """
    entries: list[Entry] = []
    reader = MemberReader(io.BytesIO(archive), limits)
    try:
        for member in reader:
            toc: TocEntry | None = None
            with suppress(Undescribable):
                toc = described(member, reader)
            digest = hashlib.sha256()
            for piece in reader.expanded(member):
                digest.update(piece)
            entries.append(_of_member(member, digest.hexdigest()))
            if described_too is not None:
                described_too.append(toc)
    except LayerfarmError as error:
        return entries, error
    return entries, None


def _of_member(member: Member, digest: str) -> Entry:
    xattrs = {name.decode("latin-1"): value.decode("latin-1") for name, value in member.xattrs}
    name, link = member.name.decode("latin-1"), member.link.decode("latin-1")
    atime = None if member.atime in (None, _ZERO_TIME) else _wrapped(member.atime)
    return Entry(
        name, link, chr(member.type), member.mode, member.uid, member.gid, member.size, _wrapped(member.mtime), atime,
        member.device, xattrs, digest,
    )  # fmt: skip


def _wrapped(time: int) -> int:
    """A time as Go has it, whose seconds wrap round at 64 bits: a fraction before the first of them does so."""
    seconds, rest = divmod(time, _SECOND)
    return ((seconds + _HIGHEST) % (2 * _HIGHEST) - _HIGHEST) * _SECOND + rest


# --- both ----------------------------------------------------------------------------------------


def compare(archive: bytes, oracle: Oracle, limits: Limits, figures: Counter[str]) -> None:
    """Read the archive with both readers.

    Raises:
        LayerfarmError: both refuse it, at the same place; or only the reader does, as TOLERANCES let it.
        AssertionError: they differ.
    """
    tocs: list[TocEntry | None] = []
    ours, refusal = read_ours(archive, limits, tocs)
    theirs, their_error, their_tocs = oracle.read(archive)
    at = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    if at is None:
        at = min(len(ours), len(theirs))
    figures["entries alike"] += at
    for toc, their_toc in zip(tocs[:at], their_tocs, strict=False):
        if toc is not None:
            _compare_described(toc, their_toc)
            figures["entries described alike"] += 1
    if at == len(ours) == len(theirs) and (refusal is None) == (their_error == _NO_ERROR):
        figures["archives read to the end by both" if refusal is None else "archives refused at one place by both"] += 1
    else:
        one, other = (found[at] if at < len(found) else None for found in (ours, theirs))
        ended = refusal if one is None else None
        found = Difference(one, other, ended, their_error if other is None else _NO_ERROR, archive)
        name = next((name for name, tolerates in TOLERANCES.items() if tolerates(found)), None)
        if name is None:
            raise AssertionError(_described(found))
        figures[f"tolerated: {name}"] += 1
    if refusal is not None:
        raise refusal


def _compare_described(toc: TocEntry, theirs: dict[str, Any]) -> None:
    for name, value in theirs.items():
        found = getattr(toc, name)
        if name in ("name", "link"):
            found = found.encode().decode("latin-1")
        elif name == "xattrs":
            found = {key.encode().decode("latin-1"): text for key, text in found.items()}
        if found != value:
            raise AssertionError(f"{name} in a table of contents is not what archive/tar reads")


def _described(found: Difference) -> str:
    """Name the difference, without values, so that one kind of difference is reported once."""
    if found.ours is not None and found.theirs is not None:
        pairs = zip(Entry._fields, found.ours, found.theirs, strict=True)
        return f"{next(name for name, one, other in pairs if one != other)} is not what archive/tar reads"
    ours = "an entry" if found.ours is not None else str(found.refusal or "the end").partition(":")[0]
    theirs = "an entry" if found.theirs is not None else found.their_error or "the end"
    return f"the reader finds {ours!r}, archive/tar {theirs!r}"
