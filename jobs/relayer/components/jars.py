"""Java archives: each is a library, or an application, of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_NAME = re.compile(rb"(.+?)(?:-(\d[^/]*))?\.(?:jar|war|ear)", re.DOTALL)


def claims(tree: ImageTree) -> Iterator[Claim]:
    """Each archive; the version is the one in its name, as Maven writes it, and no part of the component's."""
    for path, entry in tree.entries.items():
        directory, slash, name = path.rpartition(b"/")
        found = _NAME.fullmatch(name) if entry.type in ("file", "link") else None
        if found is not None:
            yield Claim(Component("jar", text(directory + slash + found[1]), text(found[2] or b"")), [path])
