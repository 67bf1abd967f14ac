"""The tree as it is now, out of what was read of it and, with a stat cache, what was known of it before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from layerfarm.jobs.flows.base import FileRef, Model, WorkDirectory
from layerfarm.jobs.flows.survey import Known, Survey, steps_of
from layerfarm.jobs.fs import open_file
from layerfarm.jobs.image.trees import ManifestDigest
from layerfarm.jobs.mtree import Entry, ManifestPatch, Output, merge_fragments, write_tree


class Tree(Model):
    """The manifest of a tree: what umoci would record of it, and what it has no place for."""

    manifest: FileRef
    extra: FileRef


class NewTree:
    """A surveyed and hashed tree."""

    def __init__(self, work: WorkDirectory, survey: Survey, fragments: list[FileRef], known: Known | None) -> None:
        self._work = work
        self._survey = survey
        self._fragments = fragments
        self._known = known

    def read(self) -> Iterator[Entry]:
        """What was read of it, in mtree order: all, or the suspects.

        Raises:
            IncompleteTree: a shard's fragment is not whole.
        """
        fragments = [self._work.open(ref) for ref in self._fragments]
        return merge_fragments(fragments, self._survey.entries_to_read)

    def replaced(self, baseline: Callable[[], Iterator[Entry]]) -> Iterator[Entry]:
        """What was in the place of that: the whole old tree, or what is gone or suspected.

        Raises:
            MtreeError: the known tree is not that of the survey.
        """
        if self._survey.reading is None:
            yield from baseline()
            return
        with self._manifest() as manifest, self._extra() as extra:
            yield from ManifestPatch(manifest, extra).dropped(steps_of(self._work, self._survey.reading))

    def digest(self) -> str:
        """``sha256:`` digest of its manifest in the form in which a layer can hold it.

        Raises:
            MtreeError: the known tree is not that of the survey.
        """
        sink = ManifestDigest()
        self._write(sink.output())
        return sink.digest()

    def write(self) -> tuple[Tree, str]:
        """Write all of it into the work directory, exactly as it lies on disk; returns that and the :meth:`digest`.

        Raises:
            MtreeError: the known tree is not that of the survey.
        """
        sink = ManifestDigest()

        def write(paths: list[Path]) -> None:
            with paths[0].open("wb") as manifest, paths[1].open("wb") as extra:
                # The exact form first: the other one leaves some of its entries out.
                self._write(Output(manifest, extra), sink.output())

        manifest, extra = self._work.publish_all(("bundle.mtree", "bundle.extra"), write)
        return Tree(manifest=manifest, extra=extra), sink.digest()

    def _write(self, *outputs: Output) -> None:
        if self._survey.reading is None:
            write_tree(self.read(), *outputs)
            return
        with self._manifest() as manifest, self._extra() as extra:
            ManifestPatch(manifest, extra).apply(steps_of(self._work, self._survey.reading), self.read(), *outputs)

    def _manifest(self) -> BinaryIO:
        assert self._known is not None
        return open_file(self._known.manifest)

    def _extra(self) -> BinaryIO:
        assert self._known is not None
        return open_file(self._known.extra)
