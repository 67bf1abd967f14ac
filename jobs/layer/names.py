"""Names in a layer: cleaned paths, their order, and whiteouts (image-spec layer.md "Whiteouts")."""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.errors import LayerError, MalformedLayer
from layerfarm.jobs.mtree.model import ROOT

PREFIX: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
AUFS_LINKS: Final = b".wh..wh.plnk"
"""In the root of layers that Docker made on AUFS: the targets of hard links elsewhere in the layer."""


def clean(name: bytes) -> list[bytes]:
    """Return the components of a name, ``.`` and ``..`` resolved lexically: ``/../../x`` is ``x`` (B2.1).

    Raises:
        MalformedLayer: it holds a NUL.
    """
    if b"\0" in name:
        raise MalformedLayer("tar entry has a NUL in its name", where=name)
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts


def walk_key(path: bytes, *, whiteout: bool = False) -> bytes:
    """Return the sort key of the order in which layers are written: a directory before its contents, names bytewise.

    The key is the path with NUL for ``/``. The whiteout of a path has a second NUL before its name and so sorts before
    its siblings (B1.10). ``path_of_key`` is the inverse.
    """
    if path == ROOT:
        return b""
    head, _, name = path.rpartition(b"/")
    return (b"\0" + head.replace(b"/", b"\0") if head else b"") + (b"\0\0" if whiteout else b"\0") + name


def path_of_key(key: bytes) -> tuple[bytes, bool]:
    """Return the path of a :func:`walk_key`, and True if it is a whiteout."""
    if not key:
        return ROOT, False
    head, mark, name = key.rpartition(b"\0\0")
    if not mark:
        return key[1:].replace(b"\0", b"/"), False
    return b"/".join((head[1:].replace(b"\0", b"/"), name)) if head else name, True


def whiteout_name(path: bytes) -> bytes:
    """Return the name of the tar entry that deletes ``path``."""
    directory, _, name = path.rpartition(b"/")
    return directory + b"/" + PREFIX + name if directory else PREFIX + name


def whiteout_target(name: bytes) -> bytes:
    """Return the name that the whiteout with the basename ``name`` hides in its directory.

    AUFS' own files (``.wh..wh.aufs``) hide a name that starts with ``.wh.``, which a layer cannot hold: they have no
    effect (B4.6).

    Raises:
        MalformedLayer: it names nothing, the directory itself or the parent (B4.5, image-spec #1301).
    """
    target = name[len(PREFIX) :]
    if target in (b"", b".", b".."):
        raise MalformedLayer("whiteout names nothing that could be deleted", where=name)
    return target


def check_real_name(path: bytes) -> None:
    """Refuse a path that readers would take for a whiteout, or for something below one (B1.9).

    Raises:
        LayerError: a component starts with ``.wh.``.
    """
    if PREFIX in path and any(part.startswith(PREFIX) for part in path.split(b"/")):
        raise LayerError(
            "a name that starts with .wh. cannot be stored in a layer", where=path, hint="rename it or mask the path"
        )
