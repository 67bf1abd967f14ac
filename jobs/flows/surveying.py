"""The first stages of a manifest and of a layer: walk a tree, and hash the unknown entries in shards.

A bundle that layerfarm made has a stat cache beside its manifest; with it only the *dirty* entries are read, which may
differ from the manifest. The result of the job is the same without it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from hashlib import file_digest
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final, TypeVar

from layerfarm.jobs.errors import StaleCache
from layerfarm.jobs.flows.base import Context, FileRef, Model, Stage, State, Unit, WorkDirectory, unit_of
from layerfarm.jobs.flows.stages import single_stage
from layerfarm.jobs.mtree import (
    NO_CLOCK,
    Dirty,
    Shard,
    StatCache,
    find_dirty,
    hash_shard,
    open_stat_cache,
    plan_shards,
    read_clock,
    walk_tree,
)

_IN_MEMORY: Final = 4 << 20
"""Bytes of a walk that is in memory until it is known to differ from the stat cache: about 30,000 entries."""

_log = logging.getLogger(__name__)


class Recorded(Model):
    """The files of a bundle that record its rootfs, pinned when the job begins."""

    manifest: Path
    extra: Path
    cache: Path
    use_cache: bool


class Incremental(Model):
    """The part of a tree that must be read; the rest is known."""

    tree: str
    """``sha256:`` digest of the known tree."""
    walk: FileRef | None = None
    """Walk file of the dirty entries; None: no entry was touched."""
    script: FileRef | None = None
    """The edit script from the old tree and the dirty entries to the new tree (:mod:`layerfarm.jobs.mtree.patch`)."""
    entries: int = 0
    """Dirty entries."""
    dropped: int = 0
    """Old entries that are gone or dirty."""


class Survey(Model):
    """A walked tree."""

    walk: FileRef | None
    """None: no entry was touched since the stat cache was made."""
    entries: int
    racy: int
    """Entries whose record no later walk can rely on."""
    incremental: Incremental | None = None
    """None: the whole tree must be read."""

    @property
    def to_read(self) -> FileRef | None:
        """Walk file of the entries that must be read; None: there are none."""
        return self.incremental.walk if self.incremental else self.walk

    @property
    def entries_to_read(self) -> int:
        return self.incremental.entries if self.incremental else self.entries


class TreeState(State):
    """State of a job that surveys and hashes a tree."""

    rootfs: Path
    recorded: Recorded | None = None
    survey: Survey | None = None
    fragments: list[FileRef] = []

    @property
    def surveyed(self) -> Survey:
        """The survey, after its stage."""
        assert self.survey is not None
        return self.survey


StateT = TypeVar("StateT", bound=TreeState)


def survey_stages(
    state_type: type[StateT], place_of: Callable[[StateT], Path], work_of: Callable[[Context, Path], WorkDirectory]
) -> tuple[Stage[StateT], Stage[StateT]]:
    """Return the stages ``survey`` and ``hash``. ``work_of`` opens the work directory at ``place_of`` the state."""

    def survey(ctx: Context, state: StateT) -> Survey:
        rootfs = ctx.policy.check_resolved(state.rootfs)
        work = work_of(ctx, place_of(state))
        work.create()
        if state.recorded is not None:
            ctx.policy.check_resolved(state.recorded.cache.parent)
        return _survey(rootfs, work, state.recorded, ctx.policy.threads, lean=ctx.format >= 3)

    def plan(ctx: Context, state: StateT) -> Sequence[Unit]:
        walk = state.surveyed.to_read
        if walk is None:
            return []
        place = place_of(state)
        shards = plan_shards(work_of(ctx, place).open(walk), ctx.policy.shards)
        return [
            unit_of(_HashUnit(place=place, rootfs=state.rootfs, walk=walk, shard=shard), shard.bytes)
            for shard in shards
        ]

    def run(ctx: Context, unit: Unit) -> dict[str, Any]:
        params = _HashUnit.model_validate(unit.params)
        rootfs = ctx.policy.check_resolved(params.rootfs)
        work = work_of(ctx, params.place)
        walk_file = work.open(params.walk)

        def write(path: Path) -> None:
            with path.open("wb") as out:
                hash_shard(rootfs, walk_file, params.shard, out, ctx.observer.advanced)

        return work.publish(f"fragment-{params.shard.offset}", write).model_dump()

    def join(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
        return state.model_copy(update={"fragments": [FileRef.model_validate(result) for result in results]})

    return single_stage("survey", state_type, Survey, survey, field="survey"), Stage("hash", plan, run, join)


class _HashUnit(Model):
    place: Path
    rootfs: Path
    walk: FileRef
    shard: Shard


def _survey(rootfs: Path, work: WorkDirectory, recorded: Recorded | None, processes: int, *, lean: bool) -> Survey:
    """``lean``: without a walk file if no entry was touched."""
    clock = NO_CLOCK if recorded is None else read_clock(recorded.cache.parent)
    with SpooledTemporaryFile(_IN_MEMORY, dir=os.fspath(work.path)) as records:
        entries, racy = walk_tree(rootfs, records, clock, processes)

        def copy(path: Path) -> None:
            records.seek(0)
            with path.open("wb") as out:
                shutil.copyfileobj(records, out, 1 << 20)

        walk = incremental = None
        try:
            if recorded is not None and recorded.use_cache:
                cache = open_stat_cache(recorded.cache, recorded.manifest, recorded.extra)
                records.seek(0)
                if cache.unchanged(file_digest(records, "sha256").hexdigest()):
                    incremental = Incremental(tree=cache.tree)
                else:
                    walk = work.publish("walk", copy)
                    incremental = _dirty(cache, work, walk)
        except StaleCache as error:
            _log.info("reading every file, the stat cache cannot be used: %s", error)
        if walk is None and not (incremental and lean):
            walk = work.publish("walk", copy)
        return Survey(walk=walk, entries=entries, racy=racy, incremental=incremental)


def _dirty(cache: StatCache, work: WorkDirectory, walk: FileRef) -> Incremental:
    walk_file = work.open(walk)
    found: Dirty

    def write(paths: list[Path]) -> None:
        nonlocal found
        with paths[0].open("wb") as dirty, paths[1].open("wb") as script:
            found = find_dirty(cache, walk_file, dirty, script)

    dirty, script = work.publish_all(("dirty", "script"), write)
    return Incremental(tree=cache.tree, walk=dirty, script=script, entries=found.entries, dropped=found.dropped)
