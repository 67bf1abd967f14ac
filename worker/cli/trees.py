"""The trees to compare: directories hashed by all processes, images, mtree files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.worker.cli.submission import Where, carry_out

if TYPE_CHECKING:
    from layerfarm.jobs.mtree import Entry

HERE = Where(farm=None, detach=False, processes=None, shards=None, progress="none")
"""In processes of this machine, without progress."""


class Tree(NamedTuple):
    """One side of a comparison."""

    entries: Iterable[Entry]
    """In mtree order; can be read once."""
    is_image: bool
    """It contains only entries that a layer can hold."""


@contextmanager
def hashed(directory: Path, where: Where = HERE) -> Iterator[Path]:
    """Yield a temporary file with the manifest of ``directory``, as :mod:`layerfarm.jobs.flows.manifest` writes it."""
    from layerfarm.jobs.flows.manifest import ManifestRequest

    with tempfile.TemporaryDirectory(prefix="layerfarm-") as work:
        output = Path(work, "manifest")
        carry_out(ManifestRequest(rootfs=directory.absolute(), output=output), where._replace(farm=None))
        yield output


def open_tree(text: str, opened: ExitStack) -> Tree:
    """Open the tree that ``text`` names: a bundle, a directory, an mtree file, or ``PATH:TAG`` of a layout.

    An existing path is taken as a path; the directory of a layout means its tag ``latest``.

    Raises:
        LayerfarmError: it names none of these, or cannot be read.
    """
    path = Path(text)
    if text and path.is_file():
        return Tree(_manifest(path, opened), False)
    if text and path.is_dir() and not (path / "oci-layout").is_file():
        return Tree(_directory(path, opened), False)
    layout, _, tag = text.partition(":")
    if not layout or not Path(layout, "oci-layout").is_file():
        raise LayerfarmError("neither a bundle, a directory, an mtree file nor PATH:TAG of a layout", where=text)
    return Tree(_image(Path(layout), tag or "latest"), True)


def _manifest(path: Path, opened: ExitStack) -> Iterable[Entry]:
    from layerfarm.jobs.flows.manifest import HEADER, read_tree_file
    from layerfarm.jobs.fs import open_file
    from layerfarm.jobs.mtree import read_full

    stream = opened.enter_context(path.open("rb"))
    if stream.read(len(HEADER)) == HEADER:
        stream.seek(0)
        return read_tree_file(stream)
    stream.seek(0)
    beside = path.with_suffix(".layerfarm")
    extra = opened.enter_context(open_file(beside)) if path.suffix == ".mtree" and beside.is_file() else None
    return read_full(stream, extra)


def _directory(path: Path, opened: ExitStack) -> Iterable[Entry]:
    from layerfarm.jobs.flows.manifest import read_tree_file
    from layerfarm.jobs.image.bundle import META_NAME, Bundle

    bundle = Bundle.open(path) if (path / META_NAME).exists() else None
    manifest = opened.enter_context(hashed(path if bundle is None else bundle.rootfs))
    entries = read_tree_file(opened.enter_context(manifest.open("rb")))
    return entries if bundle is None else bundle.meta.map_options.as_in_image(entries)


def _image(layout: Path, tag: str) -> Iterable[Entry]:
    from layerfarm.jobs.image import resolve, tree_of
    from layerfarm.jobs.store import Layout

    store = Layout.open(layout)
    return tree_of(store, resolve(store, tag))
