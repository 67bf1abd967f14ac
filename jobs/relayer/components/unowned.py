"""What no database speaks of: large files alone, the rest by where it lies."""

from __future__ import annotations

import re

from layerfarm.jobs.relayer.components.model import Component, text

LARGE = 1 << 20
"""Bytes from which on a file nobody owns is a component of its own (relayer.md 2.1: on Fedora CoreOS five
such files were 95 % of what was unclaimed)."""

_DIGITS = re.compile(rb"\d+")
_DEEP = frozenset((b"usr", b"var", b"opt", b"srv", b"home"))
"""Whose sub-directories have little to do with each other, so that one level more is looked at."""


def component_of(path: bytes, size: int) -> Component:
    """The component of a file that nobody owns."""
    if size >= LARGE:
        # app-1.2.jar follows app-1.1.jar: numbers are left out of what names it.
        return Component("file", text(_DIGITS.sub(b"#", path)))
    parts = path.split(b"/")[:-1]
    depth = 3 if parts and parts[0] in _DEEP else 2
    return Component("tree", text(b"/".join(parts[:depth])))
