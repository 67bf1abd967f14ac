"""The names by which a layer deletes (image-spec layer.md "Whiteouts")."""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.errors import LayerError, MalformedLayer

PREFIX: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
AUFS_LINKS: Final = b".wh..wh.plnk"
"""In the root of layers that Docker made on AUFS: files of which the layer has hard links elsewhere."""


def whiteout_name(path: bytes) -> bytes:
    """The name of the tar entry that deletes ``path``."""
    directory, _, name = path.rpartition(b"/")
    return directory + b"/" + PREFIX + name if directory else PREFIX + name


def whiteout_target(name: bytes) -> bytes:
    """What the whiteout with the basename ``name`` hides in its directory.

    AUFS' own files (``.wh..wh.aufs``) hide a name that starts with ``.wh.``, which no layer can hold,
    so they do nothing (B4.6).

    Raises:
        MalformedLayer: it names nothing, the directory itself or the parent (B4.5, image-spec #1301).
    """
    target = name[len(PREFIX) :]
    if target in (b"", b".", b".."):
        raise MalformedLayer("whiteout names nothing that could be deleted", where=name)
    return target


def check_real_name(path: bytes) -> None:
    """Refuse to pack a real path that readers would take for a whiteout, or for something below one (B1.9).

    Raises:
        LayerError: a component starts with ``.wh.``.
    """
    if PREFIX in path and any(part.startswith(PREFIX) for part in path.split(b"/")):
        raise LayerError(
            "a name that starts with .wh. cannot be stored in a layer", where=path, hint="rename it or mask the path"
        )
