"""The tree as it is now, out of what was read of it and, with a stat cache, what was known of it before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

from layerfarm.jobs.flows.base import FileRef, Model, WorkDirectory
from layerfarm.jobs.flows.survey import Known, Survey, steps_of
from layerfarm.jobs.image.tree_cache import as_packed
from layerfarm.jobs.mtree import Entry, KnownTree, Output, as_it_is, merge_fragments, write_tree
from layerfarm.jobs.rootfs import open_file


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
            yield from KnownTree(manifest, extra).dropped(steps_of(self._work, self._survey.reading))

    def write(self, *, packed: bool, exact: bool) -> tuple[Tree | None, Tree | None]:
        """Write all of it into the work directory: as a layer can hold it, exactly as it lies on disk, or both.

        Raises:
            MtreeError: the known tree is not that of the survey.
        """
        # The exact form first: the other one leaves some of its entries out.
        forms = [form for form, is_wanted in ((_EXACT, exact), (_PACKED, packed)) if is_wanted]

        def write(paths: list[Path]) -> None:
            with ExitStack() as stack:
                streams = (stack.enter_context(path.open("wb")) for path in paths)
                self._write([Output(next(streams), next(streams), adapt) for _, adapt in forms])

        names = [f"{name}.{suffix}" for name, _ in forms for suffix in ("mtree", "extra")]
        refs = self._work.publish_all(names, write)
        trees = [Tree(manifest=manifest, extra=extra) for manifest, extra in zip(refs[::2], refs[1::2], strict=True)]
        return trees[-1] if packed else None, trees[0] if exact else None

    def _write(self, outputs: list[Output]) -> None:
        if self._survey.reading is None:
            write_tree(self.read(), *outputs)
            return
        with self._manifest() as manifest, self._extra() as extra:
            KnownTree(manifest, extra).splice(steps_of(self._work, self._survey.reading), self.read(), *outputs)

    def _manifest(self) -> BinaryIO:
        assert self._known is not None
        return open_file(self._known.manifest)

    def _extra(self) -> BinaryIO:
        assert self._known is not None
        return open_file(self._known.extra)


_EXACT: Final = ("bundle", as_it_is)
_PACKED: Final = ("tree", as_packed)
"""How the files of each form are called, and what it makes of an entry."""
