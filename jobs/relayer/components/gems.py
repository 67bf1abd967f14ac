"""Ruby gems: ``specifications/NAME-VERSION.gemspec`` and what lies beside it (RubyGems' layout of a gem home)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_SPECIFICATION = re.compile(rb"(?:(.*)/)?specifications/((.+?)-(\d[^/]*))\.gemspec", re.DOTALL)

_PLACES = frozenset((b"gems", b"doc", b"build_info", b"specifications", b"cache", b"extensions"))
"""The directories of a gem home."""


def claims(tree: ImageTree) -> Iterator[Claim]:
    """Each gem with its files, extensions, documentation and archive."""
    gems: dict[tuple[bytes, bytes], Component] = {}
    homes: set[bytes] = set()
    for path in tree.entries:
        found = _SPECIFICATION.fullmatch(path) if path.endswith(b".gemspec") else None
        if found is not None:
            home, full, name, version = found[1] or b"", found[2], found[3], found[4]
            gems[home, full] = Component("gem", f"{text(name)} in {text(home)}", text(version))
            homes.add(home)
    owned: defaultdict[tuple[bytes, bytes], list[bytes]] = defaultdict(list)
    for path in tree.entries if gems else ():
        parts = path.split(b"/")
        for depth, part in enumerate(parts):
            home = b"/".join(parts[:depth]) if part in _PLACES else None
            if home in homes:
                full = _gem_of(parts[depth:])
                if full is not None and (home, full) in gems:
                    owned[home, full].append(path)
                break
    for key, component in gems.items():
        yield Claim(component, owned[key])


def _gem_of(parts: list[bytes]) -> bytes | None:
    """``NAME-VERSION`` of the gem that a path below a gem home belongs to."""
    if parts[0] in (b"gems", b"doc", b"build_info") and len(parts) > 1:
        return parts[1].removesuffix(b".info")
    if parts[0] in (b"specifications", b"cache") and len(parts) == 2:
        return parts[1].removesuffix(b".gemspec").removesuffix(b".gem")
    if parts[0] == b"extensions" and len(parts) > 4:
        return parts[3]  # extensions/PLATFORM/RUBY-ABI/NAME-VERSION/…
    return None
