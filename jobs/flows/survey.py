"""The first stage of a layer: names and lstat of the whole tree, and from them what has to be read.

A bundle of ours has a stat cache beside its manifest; with it only the *suspects* are read, the entries
that are not known to be what the manifest says. The result of the job is the same without.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from layerfarm.jobs.errors import StaleCache
from layerfarm.jobs.flows.base import FileRef, Model, WorkDirectory
from layerfarm.jobs.mtree import (
    NO_CLOCK,
    Dirty,
    Edit,
    StatCache,
    Walk,
    find_dirty,
    open_stat_cache,
    read_clock,
    read_edits,
    walk_tree,
)

_WALK = "walk"
_SUSPECTS = "suspects"
_SCRIPT = "script"

_log = logging.getLogger(__name__)


class Known(Model):
    """The files of a bundle that say what its rootfs was. Pinned when the job begins."""

    manifest: Path
    extra: Path
    cache: Path
    use_cache: bool


class Reading(Model):
    """What has to be read of a tree of which the rest is known."""

    suspects: FileRef
    """Their walk file."""
    script: FileRef
    """What makes the new tree of the old one and the suspects (:mod:`layerfarm.jobs.mtree.patch`)."""
    entries: int
    """Dirty."""
    dropped: int
    """Old entries that are gone or suspected."""

    @property
    def nothing(self) -> bool:
        return not (self.entries or self.dropped)


class Survey(Model):
    """A walked tree."""

    walk: FileRef
    entries: int
    racy: int
    """Records that no later walk can rely on."""
    reading: Reading | None = None
    """None: all of it has to be read."""
    tree: str | None = None
    """``sha256:`` digest of the known tree, if only suspects have to be read."""

    @property
    def to_read(self) -> FileRef:
        """The walk file of what has to be read."""
        return self.reading.suspects if self.reading else self.walk

    @property
    def entries_to_read(self) -> int:
        return self.reading.entries if self.reading else self.entries

    @property
    def untouched(self) -> bool:
        """True if the tree is known to be what it was, every entry of it."""
        return self.reading is not None and self.reading.nothing


def survey_tree(rootfs: Path, work: WorkDirectory, known: Known | None) -> Survey:
    """Walk the tree, and hold the walk against the stat cache if there is one.

    Raises:
        RootfsError, TreeChanged: as :func:`layerfarm.jobs.mtree.walk_tree`.
    """
    clock = NO_CLOCK if known is None else read_clock(known.cache.parent)
    found: Walk

    def write(path: Path) -> None:
        nonlocal found
        with path.open("w+b") as out:
            found = walk_tree(rootfs, out, clock)

    walk = work.publish(_WALK, write)
    survey = Survey(walk=walk, entries=found.entries, racy=found.racy)
    if known is None or not known.use_cache:
        return survey
    try:
        cache = open_stat_cache(known.cache, known.manifest, known.extra)
        return survey.model_copy(update={"reading": _reading(cache, work, walk), "tree": cache.tree})
    except StaleCache as error:
        _log.info("every file is read again: %s", error)
        return survey


def _reading(cache: StatCache, work: WorkDirectory, walk: FileRef) -> Reading:
    if cache.unchanged(walk.sha256):
        found = Dirty(0, 0)
        suspects = script = work.publish(_SUSPECTS, Path.touch)
    else:
        walk_file = work.open(walk)

        def write(paths: list[Path]) -> None:
            nonlocal found
            with paths[0].open("wb") as out, paths[1].open("wb") as steps:
                found = find_dirty(cache, walk_file, out, steps)

        suspects, script = work.publish_all((_SUSPECTS, _SCRIPT), write)
    return Reading(suspects=suspects, script=script, entries=found.entries, dropped=found.dropped)


def steps_of(work: WorkDirectory, reading: Reading) -> Iterator[Edit]:
    """The script of a survey."""
    with work.open(reading.script).open("rb") as stream:
        yield from read_edits(stream)
