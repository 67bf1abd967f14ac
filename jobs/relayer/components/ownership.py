"""Which component owns each file: the claims of all databases, decided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from layerfarm.jobs.mtree import UNRECORDED_TIME
from layerfarm.jobs.relayer.components import apk, dpkg, gems, jars, npm, pacman, python, rpm, rules
from layerfarm.jobs.relayer.components.imagetree import BrokenDatabase, ImageTree, Links
from layerfarm.jobs.relayer.components.model import Claim, Component, Rule
from layerfarm.jobs.relayer.components.unowned import component_of

_log = logging.getLogger(__name__)

Source = Callable[[ImageTree], Iterator[Claim]]

_PACKAGES: tuple[tuple[str, Source], ...] = (
    ("dpkg", dpkg.claims),
    ("apk", apk.claims),
    ("rpm", rpm.claims),
    ("pacman", pacman.claims),
)
_LANGUAGES: tuple[tuple[str, Source], ...] = (
    ("Python", python.claims),
    ("npm", npm.claims),
    ("gem", gems.claims),
    ("jar", jars.claims),
)
_DATABASES: tuple[Source, ...] = (dpkg.database, apk.database, rpm.database, pacman.database)

_CACHE = b"/__pycache__/"


@dataclass(frozen=True)
class Ownership:
    """A partition of everything in an image but its directories."""

    owners: dict[bytes, Component]
    """The component of each path; all names of one inode have the same."""
    warnings: list[str]
    """Databases that could not be read; what they own is then owned by place."""


def find_owners(tree: ImageTree, custom: Sequence[Rule] = ()) -> Ownership:
    """Decide for every path of the tree that is no directory.

    The first claim wins: the operator's rules, then the distribution's packages, then those of languages,
    then the databases themselves, large files, and the rest by directory. Byte code that nobody owns goes
    with its source; a package's files that are newer than the package are its *generated* part.
    """
    found = _Finder(tree)
    for claim in rules.claims(tree, custom):
        found.grant(claim)
    for name, source in _PACKAGES:
        found.grant_all(name, source, by_package=True)
    for name, source in _LANGUAGES:
        found.grant_all(name, source)
    for database in _DATABASES:
        for claim in database(tree):
            found.grant(claim)
    found.grant_rest()
    found.unite(tree.links)
    return Ownership(found.owners, found.warnings)


class _Finder:
    def __init__(self, tree: ImageTree) -> None:
        self.owners: dict[bytes, Component] = {}
        self.warnings: list[str] = []
        self._tree = tree
        self._known: dict[str, Component] = {}

    def grant(self, claim: Claim) -> list[bytes]:
        """Give the component what it claims and nobody has."""
        # Two claims of one name (two environments' records of it, say) make one component.
        component = self._known.setdefault(claim.component.key, claim.component)
        granted: list[bytes] = []
        for path in claim.paths:
            real = self._tree.real(path)
            if real is not None and real not in self.owners and self._tree.entries[real].type != "dir":
                self.owners[real] = component
                granted.append(real)
        return granted

    def grant_all(self, name: str, source: Source, *, by_package: bool = False) -> None:
        """All claims of a database, or none: half of a broken one would be a guess."""
        try:
            claims = [Claim(claim.component, list(claim.paths)) for claim in source(self._tree)]
        except BrokenDatabase as error:
            self.warnings.append(f"{name} database cannot be used, its files are taken by place: {error}")
            return
        for claim in claims:
            granted = self.grant(claim)
            if by_package:
                self._part(self._known[claim.component.key], granted)

    def _part(self, component: Component, paths: list[bytes]) -> None:
        """Set apart what was made or changed on the image itself, so that it does not spoil the rest.

        A file of a package has a time of before the package was built, which the newest of the files that
        cannot be changed here, those that dpkg or pacman keep about the package, tells. Without one: no part.
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
        # Byte code last: its source may be of nobody, too.
        for path in sorted(rest, key=lambda path: (_CACHE in path, path)):
            self.owners[path] = self._byte_code(path) or component_of(path, self._tree.entries[path].size)

    def _byte_code(self, path: bytes) -> Component | None:
        """The generated part of the component whose source this was compiled from."""
        if _CACHE not in path or not path.endswith(b".pyc"):
            return None
        directory, _, name = path.rpartition(_CACHE)
        source = directory + b"/" + name.partition(b".")[0] + b".py"
        owner = self.owners.get(source)
        return None if owner is None else owner._replace(generated=True)

    def unite(self, links: Links) -> None:
        """All names of one inode to the owner of the first: a link cannot lead from one layer to another."""
        for path, group in links.items():
            self.owners[path] = self.owners[group[0]]
