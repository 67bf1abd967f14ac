"""The component that owns each file: by the claims of all databases, the remaining files by directory."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from layerfarm.jobs.mtree import UNRECORDED_TIME
from layerfarm.jobs.relayer.components.distributions import APK, DPKG, PACMAN, apk_claims, dpkg_claims, pacman_claims
from layerfarm.jobs.relayer.components.image_tree import BrokenDatabase, Claim, Component, ImageTree, Links, text
from layerfarm.jobs.relayer.components.languages import gem_claims, jar_claims, npm_claims, python_claims
from layerfarm.jobs.relayer.components.rpm import RPM, rpm_claims

Source = Callable[[ImageTree], Iterator[Claim]]

_PACKAGES: tuple[tuple[str, Source, tuple[bytes, ...]], ...] = (
    ("dpkg", dpkg_claims, (DPKG,)),
    ("apk", apk_claims, APK),
    ("rpm", rpm_claims, RPM),
    ("pacman", pacman_claims, (PACMAN,)),
)
"""Each package manager with the directories of its database, which change whenever any package does."""
_LANGUAGES: tuple[tuple[str, Source], ...] = (
    ("Python", python_claims),
    ("npm", npm_claims),
    ("gem", gem_claims),
    ("jar", jar_claims),
)
_CACHE = b"/__pycache__/"
_LARGE = 1 << 20
"""Bytes from which an unowned file is a separate component (relayer.md 2.1: on Fedora CoreOS five such files were 95 %
of the unclaimed bytes)."""
_DIGITS = re.compile(rb"\d+")
_DEEP = frozenset((b"usr", b"var", b"opt", b"srv", b"home"))
"""Directories whose sub-directories are unrelated: files below them are grouped one level deeper."""


class Rule(NamedTuple):
    """A component defined by the operator: the paths that match one of the patterns."""

    name: str
    patterns: tuple[str, ...]
    """As :func:`fnmatch.fnmatch` on the path without its first slash: ``*`` matches slashes too."""


@dataclass(frozen=True)
class Ownership:
    """A partition of everything in an image except its directories."""

    owners: dict[bytes, Component]
    """The component of each path; all names of one inode have the same."""
    warnings: list[str]
    """Databases that could not be read; their files are grouped by directory."""


def find_owners(tree: ImageTree, custom: Sequence[Rule] = ()) -> Ownership:
    """Find the component of every path of the tree except directories.

    The first claim wins: the operator's rules, then the distribution's packages, then those of languages,
    then the databases themselves, large files, and the rest by directory. Unowned byte code is assigned to the owner of
    its source; a package's files that are newer than the package are its *generated* part.
    """
    found = _Finder(tree)
    for rule in custom:
        found.grant(_ruled(tree, rule))
    for name, source, _ in _PACKAGES:
        found.grant_all(name, source, by_package=True)
    for name, source in _LANGUAGES:
        found.grant_all(name, source)
    for name, _, directories in _PACKAGES:
        found.grant(Claim(Component("database", name), tree.below(*directories)))
    found.grant_rest()
    found.unite(tree.links)
    return Ownership(found.owners, found.warnings)


def _ruled(tree: ImageTree, rule: Rule) -> Claim:
    translated = (fnmatch.translate(pattern.removeprefix("/")) for pattern in rule.patterns)
    matches = re.compile("|".join(translated)).match
    return Claim(Component("rule", rule.name), [path for path in tree.entries if matches(os.fsdecode(path))])


def _unowned(path: bytes, size: int) -> Component:
    """Return the component of a file that no database lists: itself if it is large, else its directory."""
    if size >= _LARGE:
        # app-1.2.jar follows app-1.1.jar: its name in the plan has no numbers.
        return Component("file", text(_DIGITS.sub(b"#", path)))
    parts = path.split(b"/")[:-1]
    depth = 3 if parts and parts[0] in _DEEP else 2
    return Component("tree", text(b"/".join(parts[:depth])))


class _Finder:
    def __init__(self, tree: ImageTree) -> None:
        self.owners: dict[bytes, Component] = {}
        self.warnings: list[str] = []
        self._tree = tree
        self._known: dict[str, Component] = {}

    def grant(self, claim: Claim) -> list[bytes]:
        """Assign to the component those of its paths that have no owner; return them, links resolved."""
        # Two claims of one name (its records in two environments) make one component.
        component = self._known.setdefault(claim.component.key, claim.component)
        granted: list[bytes] = []
        for path in claim.paths:
            real = self._tree.real(path)
            if real is not None and real not in self.owners and self._tree.entries[real].type != "dir":
                self.owners[real] = component
                granted.append(real)
        return granted

    def grant_all(self, name: str, source: Source, *, by_package: bool = False) -> None:
        """Grant all claims of a database, or none if it is broken."""
        try:
            claims = [Claim(claim.component, list(claim.paths)) for claim in source(self._tree)]
        except BrokenDatabase as error:
            self.warnings.append(f"{name} database cannot be used, its files are grouped by directory: {error}")
            return
        for claim in claims:
            granted = self.grant(claim)
            if by_package:
                self._part(self._known[claim.component.key], granted)

    def _part(self, component: Component, paths: list[bytes]) -> None:
        """Separate files that were generated or changed on the image, so that the rest is the same in every image.

        Those are newer than the package, that is, than the newest file that dpkg or pacman keeps about it. Without
        such a file nothing is separated.
        """
        about = [path for path in paths if path.startswith((b"var/lib/dpkg/info/", b"var/lib/pacman/local/"))]
        if not about:
            return
        built = max(self._tree.entries[path].mtime for path in about)
        late = component._replace(generated=True)
        for path in paths:
            entry = self._tree.entries[path]
            if entry.mtime > built and entry.mtime != UNRECORDED_TIME:
                self.owners[path] = late

    def grant_rest(self) -> None:
        rest = [path for path, entry in self._tree.entries.items() if entry.type != "dir" and path not in self.owners]
        # Byte code last: its source may have no owner before.
        for path in sorted(rest, key=lambda path: (_CACHE in path, path)):
            self.owners[path] = self._byte_code(path) or _unowned(path, self._tree.entries[path].size)

    def _byte_code(self, path: bytes) -> Component | None:
        """Return the generated part of the component that owns the source of this byte code."""
        if _CACHE not in path or not path.endswith(b".pyc"):
            return None
        directory, _, name = path.rpartition(_CACHE)
        source = directory + b"/" + name.partition(b".")[0] + b".py"
        owner = self.owners.get(source)
        return None if owner is None else owner._replace(generated=True)

    def unite(self, links: Links) -> None:
        """Assign all names of an inode to the owner of the first: a hard link cannot cross layers."""
        for path, group in links.items():
            self.owners[path] = self.owners[group[0]]
