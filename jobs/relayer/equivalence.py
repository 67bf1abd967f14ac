"""Compare two trees entry by entry, with a tolerance for differences that a policy allows."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from layerfarm.jobs.errors import display
from layerfarm.jobs.layer.stack import Placed, Stack
from layerfarm.jobs.mtree.model import ROOT, mtree_key

_NS = 10**9


@dataclass(frozen=True)
class Tolerance:
    """The differences that a policy allows. By default none: the trees must be equal to the nanosecond."""

    clamp: int | None = None
    """Seconds: newer mtimes may have become this value."""
    whole_seconds: bool = False
    """Mtimes may have lost their fractions, as in every layer packed from a tree on disk."""
    removed: tuple[str, ...] = ()
    """Patterns (:func:`matcher`) of removed paths; everything below them is removed too."""
    without_xattrs: tuple[str, ...] = ()
    """Names of xattrs that may be missing, because no unpacker sets them on disk."""


EXACT: Final = Tolerance()
"""Nothing may differ."""


class PathFacts(NamedTuple):
    """The facts of one path that are compared."""

    path: bytes
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    """Nanoseconds."""
    link: bytes | None
    sha256: str | None
    device: tuple[int, int] | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    names: tuple[bytes, ...]
    """If the inode has several paths: all of them, sorted, in the facts of the first; the first one in those of the
    others, so that they do not grow with the square of the links."""


class Difference(NamedTuple):
    """One path that differs."""

    path: bytes
    what: str

    def __str__(self) -> str:
        return f"{display(self.path)}: {self.what}"


def facts_of(stack: Stack, allowed: Tolerance = EXACT, *, every_name: bool = False) -> Iterator[PathFacts]:
    """Yield the facts of a tree in mtree order, after the allowed changes.

    ``every_name``: put all paths of an inode into the facts of each, as for the digest of proofs of version 1.
    """
    gone = matcher(allowed.removed)
    names = {
        source: left
        for source, paths in stack.names().items()
        if len(left := tuple(path for path in paths if not gone(path))) > 1
    }
    dropped = frozenset(os.fsencode(name) for name in allowed.without_xattrs)
    for placed in stack.placed():
        if not gone(placed.entry.path):
            known = () if placed.source is None else names.get(placed.source, ())
            if not every_name and known[:1] != (placed.entry.path,):
                known = known[:1]
            yield _facts(placed, allowed, dropped, known)


def _facts(placed: Placed, allowed: Tolerance, dropped: frozenset[bytes], names: tuple[bytes, ...]) -> PathFacts:
    entry = placed.entry
    mtime = entry.mtime
    if allowed.clamp is not None and mtime > allowed.clamp * _NS:
        mtime = allowed.clamp * _NS
    if allowed.whole_seconds:
        mtime -= mtime % _NS
    xattrs = tuple(pair for pair in entry.xattrs or () if pair[0] not in dropped)
    path, kind, mode, uid, gid, size, _, _, link, sha256, _, device = entry
    return PathFacts(path, kind, mode, uid, gid, size, mtime, link, sha256, device, xattrs, names)


def differences(expected: Iterable[PathFacts], found: Iterable[PathFacts]) -> Iterator[Difference]:
    """Yield every path that differs; both sides in mtree order."""
    olds, news = iter(expected), iter(found)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if old == new:
            old, new = next(olds, None), next(news, None)
        elif new is None or (old is not None and _key(old) < _key(new)):
            assert old is not None
            yield Difference(old.path, f"the {old.type} is missing")
            old = next(olds, None)
        elif old is None or _key(new) < _key(old):
            yield Difference(new.path, f"the {new.type} is not in the old image")
            new = next(news, None)
        else:
            yield Difference(old.path, _what_differs(old, new))
            old, new = next(olds, None), next(news, None)


def digest_of(facts: Iterable[PathFacts]) -> tuple[str, int]:
    """Return a ``sha256:`` digest of all facts of a tree, and the number of its paths.

    It covers the lines of ``repr`` of integers, bytes, strings and tuples, which Python writes in one way only.
    """
    digest = hashlib.sha256()
    count = 0
    links: dict[bytes, bytes] = {}
    """All names of an inode as they are written, by the first: in a proof of version 1 each of them needs them."""
    for *own, names in facts:
        if len(names) < 2:
            written = repr(names).encode()
        elif (written := links.get(names[0], b"")) == b"":
            written = links[names[0]] = repr(names).encode()
        digest.update(repr(tuple(own))[:-1].encode() + b", ")
        digest.update(written)
        digest.update(b")\n")
        count += 1
    return f"sha256:{digest.hexdigest()}", count


def matcher(patterns: Sequence[str]) -> Callable[[bytes], bool]:
    """Return a function that is true for a path that matches one of the patterns, or is below one that does.

    Patterns are a shell's, from the root of the image: ``*`` and ``?`` match the slash too, ``[a-z]`` one
    byte of a class. ``usr/share/doc`` is the directory with everything in it.
    """
    if not patterns:
        return lambda path: False
    # A star matches any number of slashes, and nothing too: with a slash after it, a path that matches PATTERN, or is
    # below one that does, matches PATTERN/*.
    wanted = [fnmatch.translate(pattern.strip("/") + "/*") for pattern in patterns]
    found = re.compile(b"|".join(map(os.fsencode, wanted))).match
    return lambda path: path != ROOT and found(path + b"/") is not None


def _key(facts: PathFacts) -> bytes:
    return mtree_key(facts.path, facts.type == "dir")


def _what_differs(old: PathFacts, new: PathFacts) -> str:
    pairs = zip(PathFacts._fields[1:], old[1:], new[1:], strict=True)
    return "; ".join(_change(name, before, after) for name, before, after in pairs if before != after)


def _change(name: str, before: object, after: object) -> str:
    if isinstance(before, tuple) and isinstance(after, tuple) and name in ("xattrs", "names"):
        changed = sorted({pair[0] if name == "xattrs" else pair for pair in {*before} ^ {*after}})
        return f"{name} differ in {' '.join(map(display, changed[:3]))}{' …' if len(changed) > 3 else ''}"
    return f"{name} is {_shown(name, after)}, was {_shown(name, before)}"


def _shown(name: str, value: object) -> str:
    if name == "mode":
        return f"{value:04o}"
    return display(value) if isinstance(value, bytes) else str(value)
