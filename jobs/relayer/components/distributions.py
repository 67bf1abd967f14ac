"""Packages of Debian, Alpine and Arch, read from their databases.

dpkg: ``var/lib/dpkg`` (dpkg(1), deb(5)) and distroless images' ``status.d``. apk: ``lib/apk/db/installed``
(apk-package(5), the format of its v2 database). pacman: ``var/lib/pacman/local/NAME-VERSION/{desc,files,mtree}``
(alpm's local database).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.image_tree import BrokenDatabase, Claim, Component, ImageTree, text

DPKG = b"var/lib/dpkg"
APK = (b"lib/apk/db", b"usr/lib/apk/db")
PACMAN = b"var/lib/pacman"
_INFO = DPKG + b"/info"
_STATUS_D = DPKG + b"/status.d"
_MADE_HERE = frozenset((b"list",))
"""Files about a package that dpkg generates at installation; the others come from the package."""
_SUM = re.compile(rb"[0-9a-f]{32}  (.+)")

Fields = dict[bytes, bytes]


# --- dpkg ----------------------------------------------------------------------------------------


def dpkg_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield the files of each package that dpkg has installed.

    Raises:
        BrokenDatabase: the status file, or a list, does not parse.
    """
    where = DPKG + b"/status"
    status = tree.read(where)
    if status:
        about = _files_about(tree)
        moved = _diversions(tree)
        installed = list(paragraphs(status, where))
        native = _native(installed)
        for fields in installed:
            name = _named(fields, where)
            # For packages of several architectures, the lists are info/NAME:ARCH.list.
            full = name + b":" + fields.get(b"Architecture", b"")
            key = full if full in about else name
            if key in about:
                yield Claim(_dpkg_component(fields, native), _owned(tree, key, name, about[key], moved))
    yield from _distroless(tree)


def paragraphs(content: bytes, where: bytes) -> Iterator[Fields]:
    """Yield the paragraphs of a control file, deb822(5); only the first line of a multi-line field.

    Raises:
        BrokenDatabase: a line is neither a field nor a continuation.
    """
    fields: Fields = {}
    for line in content.split(b"\n"):
        if not line.strip():
            if fields:
                yield fields
            fields = {}
        elif line[:1] not in (b" ", b"\t", b"#"):
            name, colon, value = line.partition(b":")
            if not colon or not name:
                raise _no_field(line, where)
            fields[name] = value.strip()
        elif not fields:
            raise BrokenDatabase(f"continuation line without a field: {text(line[:80])}", where=where)
    if fields:
        yield fields


def _no_field(line: bytes, where: bytes) -> BrokenDatabase:
    return BrokenDatabase(f"line is not a field: {text(line[:80])}", where=where)


def _named(fields: Fields, where: bytes) -> bytes:
    name = fields.get(b"Package")
    if not name or b"/" in name:
        raise BrokenDatabase("paragraph has no package name", where=where)
    return name


def _native(installed: list[Fields]) -> bytes:
    """Return the architecture of most packages."""
    counted = Counter(fields.get(b"Architecture", b"") for fields in installed)
    del counted[b"all"]
    return max(counted, key=lambda arch: (counted[arch], arch), default=b"")


def _dpkg_component(fields: Fields, native: bytes) -> Component:
    name, arch = fields[b"Package"], fields.get(b"Architecture", b"")
    # "Source: glibc (2.36-9)" if the versions differ.
    source = fields.get(b"Source", name).split(b" ")[0]
    suffix = "" if arch in (native, b"all") else f":{text(arch)}"
    return Component("dpkg", text(name) + suffix, text(fields.get(b"Version", b"")), f"dpkg:{text(source)}")


def _files_about(tree: ImageTree) -> dict[bytes, list[bytes]]:
    """Return the suffixes of the names in ``info``, by package (and architecture)."""
    found: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for name in tree.names(_INFO):
        package, dot, suffix = name.rpartition(b".")
        if dot and suffix:
            found[package].append(suffix)
    return {package: suffixes for package, suffixes in found.items() if b"list" in suffixes}


def _owned(
    tree: ImageTree, key: bytes, name: bytes, about: list[bytes], moved: dict[bytes, tuple[bytes, bytes]]
) -> Iterator[bytes]:
    yield from (_INFO + b"/" + key + b"." + suffix for suffix in about if suffix not in _MADE_HERE)
    listing = _INFO + b"/" + key + b".list"
    lines = (tree.read(listing) or b"").split(b"\n")
    # A directory of the package may be a link in the image (a merged directory): not the package's own.
    directories = {line.rpartition(b"/")[0] for line in lines}
    for line in lines:
        if line and not line.startswith(b"/"):
            raise BrokenDatabase(f"line is not an absolute path: {text(line[:80])}", where=listing)
        path = line[1:]
        if path and path != b"." and line not in directories:
            diverted, owner = moved.get(path, (path, name))
            yield path if owner == name else diverted


def _diversions(tree: ImageTree) -> dict[bytes, tuple[bytes, bytes]]:
    """Return, by path, its diverted path and the package whose own file is in its place (dpkg-divert(1))."""
    content = tree.read(DPKG + b"/diversions") or b""
    lines = content.split(b"\n")
    return {
        path[1:]: (instead[1:], owner)
        for path, instead, owner in zip(lines[::3], lines[1::3], lines[2::3], strict=False)
    }


def _distroless(tree: ImageTree) -> Iterator[Claim]:
    """Yield distroless packages: ``status.d/NAME`` is the paragraph of one, ``status.d/NAME.md5sums`` its files."""
    for name in tree.names(_STATUS_D):
        if name.endswith(b".md5sums"):
            continue
        where = _STATUS_D + b"/" + name
        fields = next(paragraphs(tree.read(where) or b"", where), None)
        if fields is not None:
            _named(fields, where)
            component = _dpkg_component(fields, fields.get(b"Architecture", b""))
            sums = (tree.read(where + b".md5sums") or b"").split(b"\n")
            paths = [found[1].removeprefix(b"./") for line in sums if (found := _SUM.fullmatch(line))]
            yield Claim(component, [*paths, where, where + b".md5sums"])


# --- apk -----------------------------------------------------------------------------------------


def apk_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield the files of each package that apk has installed.

    Raises:
        BrokenDatabase: the database does not parse.
    """
    for directory in APK:
        where = directory + b"/installed"
        for block in (tree.read(where) or b"").split(b"\n\n"):
            if block.strip():
                yield _apk_package(block, where)
        if tree.names(directory):
            return  # on a merged /usr both names lead to one database


def _apk_package(block: bytes, where: bytes) -> Claim:
    fields: dict[bytes, bytes] = {}
    paths: list[bytes] = []
    folder = b""
    for line in block.split(b"\n"):
        letter, colon, value = line.partition(b":")
        if not line:
            continue
        if not colon or len(letter) != 1:
            raise _no_field(line, where)
        if letter == b"F":
            folder = value
        elif letter == b"R":
            paths.append(folder + b"/" + value if folder else value)
        else:
            fields.setdefault(letter, value)
    if not fields.get(b"P"):
        raise BrokenDatabase("entry has no package name", where=where)
    name = fields[b"P"]
    source = f"apk:{text(fields.get(b'o', name))}"
    return Claim(Component("apk", text(name), text(fields.get(b"V", b"")), source), paths)


# --- pacman --------------------------------------------------------------------------------------


def pacman_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield the files of each package that pacman has installed, except ``desc``, which has the installation date.

    Raises:
        BrokenDatabase: an entry does not parse.
    """
    local = PACMAN + b"/local"
    for entry in tree.names(local):
        where = local + b"/" + entry
        desc = tree.read(where + b"/desc")
        if desc is None:
            continue
        fields = _sections(desc, where + b"/desc")
        if not fields.get(b"NAME"):
            raise BrokenDatabase("entry has no package name", where=where)
        (name, *_), (version, *_) = fields[b"NAME"], fields.get(b"VERSION", [b""])
        (source, *_) = fields.get(b"BASE", [name])
        files = _sections(tree.read(where + b"/files") or b"", where + b"/files").get(b"FILES", [])
        paths = [path for path in files if not path.endswith(b"/")]
        own = [where + b"/" + suffix for suffix in tree.names(where) if suffix != b"desc"]
        yield Claim(Component("pacman", text(name), text(version), f"pacman:{text(source)}"), [*paths, *own])


def _sections(content: bytes, where: bytes) -> dict[bytes, list[bytes]]:
    """Parse ``%NAME%``, then a value a line, then an empty line."""
    found: defaultdict[bytes, list[bytes]] = defaultdict(list)
    section = None
    for line in content.split(b"\n"):
        if line.startswith(b"%") and line.endswith(b"%") and len(line) > 2:
            section = line[1:-1]
        elif line and section is None:
            raise BrokenDatabase(f"line outside any section: {text(line[:80])}", where=where)
        elif line and section is not None:
            found[section].append(line)
    return found
