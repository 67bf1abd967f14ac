"""rpm's packages, from its sqlite or ndb database; rpm-rs reads the headers.

rpm before 4.16 has a Berkeley DB, which no maintained library reads.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from layerfarm.jobs.extras import require
from layerfarm.jobs.limits import limits
from layerfarm.jobs.relayer.components.image_tree import BrokenDatabase, Claim, Component, ImageTree, text

RPM: Final = (b"usr/lib/sysimage/rpm", b"var/lib/rpm", b"usr/share/rpm")
_SQLITE: Final = b"rpmdb.sqlite"
_NDB_NAME: Final = b"Packages.db"
_BERKELEY: Final = b"Packages"
_HEADER_MAGIC: Final = bytes.fromhex("8eade80100000000")
_LEAD: Final = bytes.fromhex("edabeedb0300000000017800").ljust(76, b"\0") + b"\0\1\0\5" + bytes(16)
"""The first 96 bytes of a package's file; only the magic and the signature type 5 are still read."""
_NO_SIGNATURE: Final = _HEADER_MAGIC + bytes(8)

_COUNTS: Final = struct.Struct(">II")
"""Index entries of 16 bytes, and bytes of data, of a header."""
_NDB: Final = struct.Struct("<4sIII")
"""The file's header, a slot and the head of a blob."""


def rpm_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield the files of each package that rpm has installed.

    Raises:
        BrokenDatabase: the database does not parse, or is a Berkeley DB.
        MissingExtra: there is an rpm database, and ``layerfarm[catalog]`` is not installed.
    """
    for directory in RPM:
        there = set(tree.names(directory))
        if _SQLITE in there:
            yield from _packages(_sqlite_headers(tree, directory), directory)
        elif _NDB_NAME in there:
            yield from _packages(_ndb_headers(tree.read(directory + b"/" + _NDB_NAME) or b"", directory), directory)
        elif _BERKELEY in there:
            raise BrokenDatabase("rpm database in unsupported Berkeley DB format", where=directory + b"/" + _BERKELEY)
        else:
            continue
        return  # further directories are links to the first one


def _packages(headers: Iterator[bytes], where: bytes) -> Iterator[Claim]:
    require("catalog", "reading an rpm database")
    for header in headers:
        name, evr, source, paths = _read_header(header, where)
        if name != "gpg-pubkey":
            owned = [path.encode("utf-8", "surrogateescape").removeprefix(b"/") for path in paths]
            # bash-5.2.15-1.fc38.src.rpm: the name is before the last two hyphens.
            built_from = source.rsplit("-", 2)[0] if source else name
            yield Claim(Component("rpm", text(name), text(evr), f"rpm:{text(built_from)}"), owned)


def _read_header(header: bytes, where: bytes) -> tuple[str, str, str | None, list[str]]:
    """Return name, epoch with version and release, source package and paths."""
    import rpm_rs  # 8 MB, for the few images that have an rpm database

    # The library allocates as much as the header states.
    if len(header) < 8 or len(header) != 8 + 16 * _COUNTS.unpack_from(header)[0] + _COUNTS.unpack_from(header)[1]:
        raise BrokenDatabase("header of a package does not have the stated length", where=where)
    try:
        package = rpm_rs.PackageMetadata.from_bytes(_LEAD + _NO_SIGNATURE + _HEADER_MAGIC + header)
        return package.name, str(package.evr()), package.source_rpm, package.file_paths()
    except BaseException as error:  # of a damaged header: its own errors, or a Rust panic, which is not an Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise BrokenDatabase(f"header of a package does not parse, {text(str(error))}", where=where) from error


def _sqlite_headers(tree: ImageTree, directory: bytes) -> Iterator[bytes]:
    """Yield the headers in table ``Packages``, read from a copy: opening a database with a log would write."""
    where = directory + b"/" + _SQLITE
    with TemporaryDirectory(prefix="layerfarm-rpmdb-") as temporary:
        copy = Path(temporary, "rpmdb.sqlite")
        for suffix in ("", "-wal"):
            content = tree.read(where + suffix.encode())
            if content is not None:
                copy.with_name(copy.name + suffix).write_bytes(content)
        try:
            with closing(sqlite3.connect(copy)) as connection:
                for (blob,) in connection.execute("SELECT blob FROM Packages ORDER BY hnum"):
                    if not isinstance(blob, bytes):
                        raise BrokenDatabase("header of a package is not a blob", where=where)
                    yield blob
        except sqlite3.Error as error:
            raise BrokenDatabase(f"rpm database cannot be read, {text(str(error))}", where=where) from error


def _ndb_headers(content: bytes, directory: bytes) -> Iterator[bytes]:
    """Yield the headers in a ``Packages.db``: a table of slots of 16 bytes, each with the offset of a blob.

    Offsets count in blocks of 16 bytes; the table has whole pages of 4096 bytes, and its first two slots
    are the file's own header (rpm's lib/backend/ndb/rpmpkg.c).
    """
    where = directory + b"/" + _NDB_NAME
    if len(content) < 32 or content[:4] != b"RpmP":
        raise BrokenDatabase("not an ndb database", where=where)
    _, version, _, pages = _NDB.unpack_from(content)
    if version != 0 or not pages or pages * 4096 > len(content):
        raise BrokenDatabase("ndb database has another version, or is truncated", where=where)
    slots = [_NDB.unpack_from(content, at) for at in range(32, pages * 4096, _NDB.size)]
    most = limits().document_bytes * 16
    for magic, index, block, _ in sorted(slots, key=lambda slot: slot[1]):
        if magic != b"Slot":
            raise BrokenDatabase("slot of the ndb database is damaged", where=where)
        if not index or not block:
            continue
        at = block * 16
        if at + _NDB.size > len(content):
            raise BrokenDatabase("ndb database is truncated", where=where)
        begin, owner, _, length = _NDB.unpack_from(content, at)
        header = content[at + _NDB.size : at + _NDB.size + length]
        if begin != b"BlbS" or owner != index or len(header) != length or length > most:
            raise BrokenDatabase("blob of the ndb database is damaged", where=where)
        yield header
