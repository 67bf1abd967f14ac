"""Packages of languages: Python distributions, node packages, Ruby gems, Java archives."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.image_tree import BrokenDatabase, Claim, Component, ImageTree, text

_RECORD = b".dist-info/RECORD"
_RUNS = re.compile(r"[-_.]+")
_MODULES = b"node_modules/"
_PACKAGE_JSON_BYTES = 4 << 20
_GEM = re.compile(rb"(?:(.*)/)?specifications/((.+?)-(\d[^/]*))\.gemspec", re.DOTALL)
_GEM_HOME = frozenset((b"gems", b"doc", b"build_info", b"specifications", b"cache", b"extensions"))
"""The directories of a gem home."""
_JAR = re.compile(rb"(.+?)(?:-(\d[^/]*))?\.(?:jar|war|ear)", re.DOTALL)


def python_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield each distribution with its ``RECORD`` (packaging.python.org "Recording installed projects") and byte code.

    Raises:
        BrokenDatabase: a record is not CSV.
    """
    for record in [path for path in tree.entries if path.endswith(_RECORD)]:
        information = record.removesuffix(b"/RECORD")
        site = information.rpartition(b"/")[0]
        name, _, version = text(information.removesuffix(b".dist-info")[len(site) :].lstrip(b"/")).partition("-")
        prefix = site + b"/" if site else b""
        about = [information + b"/" + other for other in tree.names(information)]
        # The directory is part of the name: an image may have several environments.
        component = Component("python", f"{_RUNS.sub('-', name).lower()} in {text(site)}", version)
        yield Claim(component, [*(_from_root(prefix, path) for path in _recorded(tree, record)), *about])


def _recorded(tree: ImageTree, record: bytes) -> list[bytes]:
    content = tree.read(record) or b""
    try:
        rows = csv.reader(content.decode("utf-8", "surrogateescape").splitlines(), strict=True)
        return [row[0].encode("utf-8", "surrogateescape") for row in rows if row and row[0]]
    except csv.Error as error:
        raise BrokenDatabase(f"record is not CSV, {text(str(error))}", where=record) from error


def _from_root(prefix: bytes, path: bytes) -> bytes:
    """Return a path of a record, absolute or relative to the site directory, relative to the root."""
    parts: list[bytes] = []
    for part in (path if path.startswith(b"/") else prefix + path).split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def npm_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield each package below ``node_modules`` with its files, except those of packages inside it."""
    packages: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for path in tree.entries:
        if _MODULES in path:
            package = _npm_package(path)
            if package is not None:
                packages[package].append(path)
    for package, paths in packages.items():
        place = package + b"/package.json"
        if tree.real(place) is not None:
            manifest = tree.read(place, _PACKAGE_JSON_BYTES) or b""
            yield Claim(Component("npm", text(package), _npm_version(manifest)), paths)


def _npm_package(path: bytes) -> bytes | None:
    """Return the directory of the innermost package around ``path``."""
    at = path.rfind(b"/" + _MODULES) + 1
    if at == 0 and not path.startswith(_MODULES):
        return None
    begin = at + len(_MODULES)
    parts = path[begin:].split(b"/")
    depth = 2 if parts[0].startswith(b"@") else 1
    if len(parts) <= depth or parts[0].startswith(b"."):
        return None
    return path[:begin] + b"/".join(parts[:depth])


def _npm_version(manifest: bytes) -> str:
    """Return the version for display; empty for a manifest that does not parse."""
    try:
        found = json.loads(manifest)
    except (ValueError, RecursionError):
        return ""
    version = found.get("version", "") if isinstance(found, dict) else ""
    return text(version[:100]) if isinstance(version, str) else ""


def gem_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield each gem with its files, extensions, documentation and archive (RubyGems' layout of a gem home)."""
    gems: dict[tuple[bytes, bytes], Component] = {}
    homes: set[bytes] = set()
    for path in tree.entries:
        found = _GEM.fullmatch(path) if path.endswith(b".gemspec") else None
        if found is not None:
            home, full, name, version = found[1] or b"", found[2], found[3], found[4]
            gems[home, full] = Component("gem", f"{text(name)} in {text(home)}", text(version))
            homes.add(home)
    owned: defaultdict[tuple[bytes, bytes], list[bytes]] = defaultdict(list)
    for path in tree.entries if gems else ():
        parts = path.split(b"/")
        for depth, part in enumerate(parts):
            home = b"/".join(parts[:depth]) if part in _GEM_HOME else None
            if home in homes:
                full = _gem_of(parts[depth:])
                if full is not None and (home, full) in gems:
                    owned[home, full].append(path)
                break
    for key, component in gems.items():
        yield Claim(component, owned[key])


def _gem_of(parts: list[bytes]) -> bytes | None:
    """Return ``NAME-VERSION`` of the gem that a path below a gem home belongs to."""
    if parts[0] in (b"gems", b"doc", b"build_info") and len(parts) > 1:
        return parts[1].removesuffix(b".info")
    if parts[0] in (b"specifications", b"cache") and len(parts) == 2:
        return parts[1].removesuffix(b".gemspec").removesuffix(b".gem")
    if parts[0] == b"extensions" and len(parts) > 4:
        return parts[3]  # extensions/PLATFORM/RUBY-ABI/NAME-VERSION/…
    return None


def jar_claims(tree: ImageTree) -> Iterator[Claim]:
    """Yield each Java archive by itself; the version in its name, as Maven writes it, is not part of the key."""
    for path, entry in tree.entries.items():
        directory, slash, name = path.rpartition(b"/")
        found = _JAR.fullmatch(name) if entry.type in ("file", "link") else None
        if found is not None:
            yield Claim(Component("jar", text(directory + slash + found[1]), text(found[2] or b"")), [path])
