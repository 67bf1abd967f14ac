"""The nouns of components."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from layerfarm.jobs.errors import display


class Component(NamedTuple):
    """A part of an image that is made, and changes, as one."""

    kind: str
    """``dpkg apk rpm pacman python npm gem jar file rule tree``, or that of a database."""
    name: str
    """Of one kind unique in an image; the same from one version to the next."""
    version: str = ""
    source: str = ""
    """What it is built from: components of one source change together. Empty: nothing else is."""
    generated: bool = False
    """Its files that were made or changed on the image itself: byte code, edited configuration."""

    @property
    def key(self) -> str:
        """What stands for the component, of any version, in a plan."""
        return f"{self.kind}:{self.name}{'#generated' if self.generated else ''}"


class Claim(NamedTuple):
    """Paths that a database gives to a component: relative ones as it writes them, links not resolved."""

    component: Component
    paths: Iterable[bytes]


class Rule(NamedTuple):
    """An operator's own component: the paths that match one of the patterns."""

    name: str
    patterns: tuple[str, ...]
    """As :func:`fnmatch.fnmatch` on the path without its first slash: ``*`` matches slashes, too."""


def text(name: bytes | str) -> str:
    """A name of the image as it is shown and written into a plan: one printable line, whatever it holds."""
    return display(name)
