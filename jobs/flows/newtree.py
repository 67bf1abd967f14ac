"""The tree as it is now, out of what was read of it and, with a stat cache, what was known of it before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from jobs.flows.base import FileRef, Model, WorkDirectory
from jobs.flows.survey import Known, Survey, steps_of
from jobs.image.tree_cache import portable, write_tree
from jobs.mtree import Entry, KnownTree, merge_fragments


class Tree(Model):
    """The manifest of a tree: what umoci would record of it, and what it has no place for."""

    manifest: FileRef
    extra: FileRef
    entries: int


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
            yield from KnownTree(manifest, extra).dropped(steps_of(self._work, self._survey.reading))

    def write(self, name: str, *, exact: bool = False) -> Tree:
        """Write all of it into the work directory, as a layer can hold it, or exactly as it lies on disk.

        Raises:
            MtreeError: the known tree is not that of the survey.
        """
        count = 0
        extra: FileRef

        def write_manifest(manifest: Path) -> None:
            def write_both(rest: Path) -> None:
                nonlocal count
                with manifest.open("wb") as out, rest.open("wb") as beside:
                    count = self._write(out, beside, exact)

            nonlocal extra
            extra = self._work.publish(f"{name}.extra", write_both)

        manifest = self._work.publish(f"{name}.mtree", write_manifest)
        return Tree(manifest=manifest, extra=extra, entries=count)

    def _write(self, out: BinaryIO, beside: BinaryIO, exact: bool) -> int:
        if self._survey.reading is None:
            return write_tree(self.read() if exact else portable(self.read()), out, beside)
        steps = steps_of(self._work, self._survey.reading)
        with self._manifest() as manifest, self._extra() as extra:
            known = KnownTree(manifest, extra)
            return known.splice(steps, self.read(), _unaltered if exact else _as_packed, out, beside)

    def _manifest(self) -> BinaryIO:
        assert self._known is not None
        return self._known.manifest.open("rb")

    def _extra(self) -> BinaryIO:
        assert self._known is not None
        return self._known.extra.open("rb")


def _unaltered(entry: Entry) -> Entry:
    return entry


def _as_packed(entry: Entry) -> Entry | None:
    return next(portable((entry,)), None)
