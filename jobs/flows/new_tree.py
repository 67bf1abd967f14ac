"""The tree as it is now, from the entries that were read and, with a stat cache, from the known ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfarm.jobs.flows.base import FileRef, Model, WorkDirectory
from layerfarm.jobs.flows.surveying import Incremental, TreeState
from layerfarm.jobs.fs import open_file
from layerfarm.jobs.image.trees import ManifestDigest
from layerfarm.jobs.mtree import Edit, Entry, ManifestPatch, Output, merge_lines, parse_lines, read_edits, write_lines


class Tree(Model):
    """The manifest of a tree in umoci's form, and its extra file."""

    manifest: FileRef
    extra: FileRef


class NewTree:
    """A surveyed and hashed tree.

    Every method raises:
        IncompleteTree: a shard's fragment is incomplete.
        MtreeError: the known tree does not match the survey.
    """

    def __init__(self, work: WorkDirectory, state: TreeState) -> None:
        self._work = work
        self._survey = state.surveyed
        self._fragments = state.fragments
        self._recorded = state.recorded

    def read(self) -> Iterator[Entry]:
        """Return the entries that were read, in mtree order: all, or the dirty ones."""
        return parse_lines(self.lines())

    def lines(self) -> Iterator[bytes]:
        """Return the lines of fragments of :meth:`read`."""
        fragments = [self._work.open(ref) for ref in self._fragments]
        return merge_lines(fragments, self._survey.entries_to_read)

    def replaced(self, baseline: Callable[[], Iterator[Entry]]) -> Iterator[Entry]:
        """Yield the old entries in their place: the whole old tree, or those that are gone or dirty."""
        if self._survey.incremental is None:
            yield from baseline()
            return
        with self._known(self._survey.incremental) as (patch, edits):
            yield from patch.dropped(edits)

    def digest(self) -> str:
        """Return the ``sha256:`` digest of its manifest in the form in which a layer can hold it."""
        sink = ManifestDigest()
        self._write(sink.output())
        return sink.digest()

    def write(self) -> tuple[Tree, str]:
        """Write the tree into the work directory, exactly as on disk; return it and the :meth:`digest`."""
        sink = ManifestDigest()

        def write(paths: list[Path]) -> None:
            with paths[0].open("wb") as manifest, paths[1].open("wb") as extra:
                # The exact form first: the other one omits some of its entries.
                self._write(Output(manifest, extra), sink.output())

        manifest, extra = self._work.publish_all(("bundle.mtree", "bundle.extra"), write)
        return Tree(manifest=manifest, extra=extra), sink.digest()

    def _write(self, *outputs: Output) -> None:
        if self._survey.incremental is None:
            write_lines(self.lines(), *outputs)
            return
        with self._known(self._survey.incremental) as (patch, edits):
            patch.apply(edits, self.read(), *outputs)

    @contextmanager
    def _known(self, part: Incremental) -> Iterator[tuple[ManifestPatch, Iterator[Edit]]]:
        assert self._recorded is not None and part.script is not None
        with (
            open_file(self._recorded.manifest) as manifest,
            open_file(self._recorded.extra) as extra,
            self._work.open(part.script).open("rb") as script,
        ):
            yield ManifestPatch(manifest, extra), read_edits(script)
