"""Node packages: what lies below ``node_modules/NAME``, as every npm client lays them out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_MODULES = b"node_modules/"
_PACKAGE_JSON_BYTES = 4 << 20


def claims(tree: ImageTree) -> Iterator[Claim]:
    """Each package with the files that belong to none of the packages inside it."""
    packages: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for path in tree.entries:
        if _MODULES in path:
            package = _package_of(path)
            if package is not None:
                packages[package].append(path)
    for package, paths in packages.items():
        place = package + b"/package.json"
        if tree.real(place) is not None:
            manifest = tree.read(place, _PACKAGE_JSON_BYTES) or b""
            yield Claim(Component("npm", text(package), _version(manifest)), paths)


def _package_of(path: bytes) -> bytes | None:
    """The directory of the innermost package around ``path``."""
    at = path.rfind(b"/" + _MODULES) + 1
    if at == 0 and not path.startswith(_MODULES):
        return None
    begin = at + len(_MODULES)
    parts = path[begin:].split(b"/")
    depth = 2 if parts[0].startswith(b"@") else 1
    if len(parts) <= depth or parts[0].startswith(b"."):
        return None
    return path[:begin] + b"/".join(parts[:depth])


def _version(manifest: bytes) -> str:
    """The version for display; that a package cannot say it makes it no less a package."""
    try:
        found = json.loads(manifest)
    except (ValueError, RecursionError):
        return ""
    version = found.get("version", "") if isinstance(found, dict) else ""
    return text(version[:100]) if isinstance(version, str) else ""
