"""Debian's packages: ``var/lib/dpkg`` (dpkg(1), deb(5)) and distroless images' ``status.d``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import BrokenDatabase, ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_DATABASE = b"var/lib/dpkg"
_INFO = _DATABASE + b"/info"
_STATUS = _DATABASE + b"/status"
_STATUS_D = _DATABASE + b"/status.d"
_MADE_HERE = frozenset((b"list",))
"""Files about a package that dpkg makes when it installs; the others come out of the package."""
_SUM = re.compile(rb"[0-9a-f]{32}  (.+)")

Fields = dict[bytes, bytes]


def claims(tree: ImageTree) -> Iterator[Claim]:
    """What dpkg says that each installed package owns.

    Raises:
        BrokenDatabase: the status file, or a list of it, does not parse.
    """
    status = tree.read(_STATUS)
    if status:
        about = _files_about(tree)
        moved = _diversions(tree)
        installed = list(paragraphs(status, _STATUS))
        native = _native(installed)
        for fields in installed:
            name = _named(fields, _STATUS)
            # Where a package may be installed for several architectures the lists are info/NAME:ARCH.list.
            full = name + b":" + fields.get(b"Architecture", b"")
            key = full if full in about else name
            if key in about:
                yield Claim(_component(fields, native), _owned(tree, key, name, about[key], moved))
    yield from _distroless(tree)


def database(tree: ImageTree) -> Iterator[Claim]:
    """What dpkg itself keeps: it changes whenever any package does."""
    below = _DATABASE + b"/"
    yield Claim(Component("database", "dpkg"), [path for path in tree.entries if path.startswith(below)])


def paragraphs(content: bytes, where: bytes) -> Iterator[Fields]:
    """The paragraphs of a control file, deb822(5): of a field of several lines the first one.

    Raises:
        BrokenDatabase: a line is no field and continues none.
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
                raise BrokenDatabase(f"line is no field: {text(line[:80])}", where=where)
            fields[name] = value.strip()
        elif not fields:
            raise BrokenDatabase(f"line continues no field: {text(line[:80])}", where=where)
    if fields:
        yield fields


def _named(fields: Fields, where: bytes) -> bytes:
    name = fields.get(b"Package")
    if not name or b"/" in name:
        raise BrokenDatabase("paragraph names no package", where=where)
    return name


def _native(installed: list[Fields]) -> bytes:
    """The architecture of most packages."""
    counted = Counter(fields.get(b"Architecture", b"") for fields in installed)
    del counted[b"all"]
    return max(counted, key=lambda arch: (counted[arch], arch), default=b"")


def _component(fields: Fields, native: bytes) -> Component:
    name, arch = fields[b"Package"], fields.get(b"Architecture", b"")
    # "Source: glibc (2.36-9)" where the versions differ.
    source = fields.get(b"Source", name).split(b" ")[0]
    suffix = "" if arch in (native, b"all") else f":{text(arch)}"
    return Component("dpkg", text(name) + suffix, text(fields.get(b"Version", b"")), f"dpkg:{text(source)}")


def _files_about(tree: ImageTree) -> dict[bytes, list[bytes]]:
    """The names in ``info``, by package (and architecture)."""
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
    # A directory of the package may be a link in the image, to where it is merged: not the package's own.
    directories = {line.rpartition(b"/")[0] for line in lines}
    for line in lines:
        if line and not line.startswith(b"/"):
            raise BrokenDatabase(f"line is no absolute path: {text(line[:80])}", where=listing)
        path = line[1:]
        if path and path != b"." and line not in directories:
            diverted, owner = moved.get(path, (path, name))
            yield path if owner == name else diverted


def _diversions(tree: ImageTree) -> dict[bytes, tuple[bytes, bytes]]:
    """Path to where it lies instead, and the package whose own file is in its place (dpkg-divert(1))."""
    content = tree.read(_DATABASE + b"/diversions") or b""
    lines = content.split(b"\n")
    return {
        path[1:]: (instead[1:], owner)
        for path, instead, owner in zip(lines[::3], lines[1::3], lines[2::3], strict=False)
    }


def _distroless(tree: ImageTree) -> Iterator[Claim]:
    """``status.d/NAME`` is the paragraph of a package, ``status.d/NAME.md5sums`` its files."""
    for name in tree.names(_STATUS_D):
        if name.endswith(b".md5sums"):
            continue
        where = _STATUS_D + b"/" + name
        for fields in paragraphs(tree.read(where) or b"", where):
            _named(fields, where)
            component = _component(fields, fields.get(b"Architecture", b""))
            sums = (tree.read(where + b".md5sums") or b"").split(b"\n")
            paths = [found[1].removeprefix(b"./") for line in sums if (found := _SUM.fullmatch(line))]
            yield Claim(component, [*paths, where, where + b".md5sums"])
            break
