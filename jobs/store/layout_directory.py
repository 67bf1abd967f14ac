"""The directory of a layout (image-layout.md): created whole or not at all, and checked when it is opened."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from layerfarm.jobs.errors import LayoutExists, NotALayout
from layerfarm.jobs.paths import is_directory, is_file
from layerfarm.jobs.store.atomic_file import (
    BLOBS,
    PRIVATE_DIRECTORY,
    explained,
    files_of,
    give_to_owner,
    make_directory,
    read_file,
    replace_file,
    sync_directory,
    unmoved,
)
from layerfarm.jobs.store.descriptor import MEDIA_TYPE_INDEX, Index
from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.index import LOCK_NAME

_LAYOUT_VERSION = "1.0.0"
_EMPTY = Index.model_validate({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": []})
"""A new ``index.json``, with the media type that umoci 0.6 writes."""


class _LayoutFile(Document):
    """The ``oci-layout`` file (image-layout.md "oci-layout file")."""

    imageLayoutVersion: str


_MARKER = encode_document(_LayoutFile(imageLayoutVersion=_LAYOUT_VERSION))
"""The usual ``oci-layout``; most tools write these bytes."""
_HINT = "is its disk mounted? a new store: layerfarm init --layout PATH"
"""The mount point of a disk that is not mounted is an empty directory."""


def create_directory(path: Path) -> None:
    """Create an empty layout: :meth:`layerfarm.jobs.store.layout.Layout.create`."""
    with explained("layout cannot be created", path):
        new = _empty_directory(path)
        try:
            # One of several processes that found the directory empty can create this.
            (path / BLOBS).mkdir()
        except FileExistsError as error:
            raise LayoutExists("another process is creating a layout here", where=path) from error
        try:
            with files_of(path).directory(path / BLOBS, os.O_RDONLY | os.O_DIRECTORY) as blobs:
                give_to_owner(blobs, path)
            make_directory(path / BLOBS / "sha256", path)
            # Staged in the layout itself: an empty one gets no private directory.
            replace_file(path / "index.json", encode_document(_EMPTY), path, staging=path)
            # Last, because with it the directory is a layout.
            replace_file(path / "oci-layout", _MARKER, path, staging=path)
            sync_directory(path)
        except BaseException:
            _remove_new(path, new)
            raise


def check_directory(path: Path) -> None:
    """Check that a layout is there: :meth:`layerfarm.jobs.store.layout.Layout.open`."""
    if not is_directory(path):
        raise NotALayout("no OCI image layout here", where=path, hint=_HINT)
    for name, is_there in (("oci-layout", is_file), ("index.json", is_file), (BLOBS, is_directory)):
        if not unmoved(partial(is_there, path / name)):
            raise NotALayout(f"not an OCI image layout, it has no {name}", where=path, hint=_HINT)
    marker = path / "oci-layout"
    raw = read_file(marker, "document_bytes", path)
    if raw != _MARKER:
        version = parse_document(_LayoutFile, raw, str(marker)).imageLayoutVersion
        if version != _LAYOUT_VERSION:
            raise NotALayout(f"layout version is {version[:40]!r}, layerfarm reads {_LAYOUT_VERSION}", where=path)


def private_faults(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield each path in the private directory that the store refuses to open, and the reason; nothing is changed.

    The directory and its subdirectories are opened by the store's own rule: :func:`files_of`.
    """
    files, top = files_of(path), path / PRIVATE_DIRECTORY
    try:
        if not stat.S_ISDIR(files.lstat(top).st_mode):
            yield top, "not a directory"
            return
    except FileNotFoundError:
        return
    pending = [top]
    while pending:
        here = pending.pop()
        try:
            for name, found in files.lstats(here):
                is_lock = here == top and name == LOCK_NAME
                if stat.S_ISDIR(found.st_mode) and not is_lock:
                    pending.append(here / name)
                elif here == top and not is_lock:
                    yield here / name, "not a directory"
                elif not stat.S_ISREG(found.st_mode):
                    yield here / name, "not a regular file"
        except OSError as error:
            yield here, f"directory cannot be read, {error.strerror}"


def _empty_directory(path: Path) -> bool:
    """Create the directory; return False if it exists and is empty. Raises LayoutExists if it is anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError as error:
        if path.is_dir() and not any(path.iterdir()):
            return False
        raise LayoutExists("path exists and is not an empty directory", where=path) from error
    return True


def _remove_new(path: Path, with_itself: bool) -> None:
    """Remove the parts of a layout that could not be created whole."""
    shutil.rmtree(path / BLOBS, ignore_errors=True)
    with suppress(OSError):
        for name in ("index.json", "oci-layout"):
            (path / name).unlink(missing_ok=True)
        if with_itself:
            path.rmdir()
