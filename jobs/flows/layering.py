"""The stages that turn a tree on disk into a layer: survey, hash, compare, pack.

``build`` and ``repack`` share them; they differ in where the old tree comes from and in what is
published at the end. Every unit leaves its output as a file in the job's work directory, so a unit
that runs twice, or on another host, finds the same input and leaves the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Generic

from layerfarm.jobs.errors import display
from layerfarm.jobs.flows.base import Context, FileRef, Model, Stage, Unit, WorkDirectory, unit_of, work_directory
from layerfarm.jobs.flows.layer_state import Changes, LayeringState, StateT
from layerfarm.jobs.flows.newtree import NewTree
from layerfarm.jobs.flows.pack_stage import pack_stage
from layerfarm.jobs.flows.survey import Known, Survey, survey_tree
from layerfarm.jobs.flows.tree_unit import is_tree_unit, plan_beside_comparing, run_tree_unit, split_results
from layerfarm.jobs.image.trees import portable
from layerfarm.jobs.mtree import (
    Delta,
    DeltaSummary,
    Entry,
    Shard,
    compare,
    hash_shard,
    mask,
    plan_shards,
    simplify,
    write_deltas,
)

_DELTAS: Final = "deltas"

Baseline = Callable[[Context, StateT], Iterator[Entry]]
"""Opens the old tree, in mtree order; called inside the compare unit."""


def layering_stages(state_type: type[StateT], baseline: Baseline[StateT]) -> tuple[Stage[StateT], ...]:
    """The four stages, for a flow whose old tree is opened by ``baseline``."""
    compare_stage: _Compare[StateT] = _Compare(state_type, baseline)
    return (
        Stage("survey", _plan_survey, _run_survey, _join_survey),
        Stage("hash", _plan_hash, _run_hash, _join_hash),
        Stage("compare", compare_stage.plan, compare_stage.run, compare_stage.join),
        pack_stage(),
    )


# --- survey: names and lstat of the whole tree ---------------------------------------------------


class _SurveyUnit(Model):
    store: Path
    rootfs: Path
    known: Known | None


def _plan_survey(ctx: Context, state: LayeringState) -> list[Unit]:
    return [unit_of(_SurveyUnit(store=state.store, rootfs=state.rootfs, known=state.known))]


def _run_survey(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _SurveyUnit.model_validate(unit.params)
    rootfs = ctx.policy.check_resolved(params.rootfs)
    work = work_directory(ctx, params.store)
    work.create()
    if params.known is not None:
        ctx.policy.check_resolved(params.known.cache.parent)
    return survey_tree(rootfs, work, params.known).model_dump(mode="json")


def _join_survey(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    (result,) = results
    return state.model_copy(update={"survey": Survey.model_validate(result)})


# --- hash: shards of equal cost, in parallel -----------------------------------------------------


class _HashUnit(Model):
    store: Path
    rootfs: Path
    walk: FileRef
    shard: Shard


def _plan_hash(ctx: Context, state: LayeringState) -> list[Unit]:
    assert state.survey is not None
    walk = state.survey.to_read
    walk_file = work_directory(ctx, state.store).open(walk)
    return [
        unit_of(_HashUnit(store=state.store, rootfs=state.rootfs, walk=walk, shard=shard), nbytes=shard.bytes)
        for shard in plan_shards(walk_file, ctx.policy.shards)
    ]


def _run_hash(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _HashUnit.model_validate(unit.params)
    rootfs = ctx.policy.check_resolved(params.rootfs)
    work = work_directory(ctx, params.store)
    walk_file = work.open(params.walk)
    shard = params.shard

    def write(path: Path) -> None:
        with path.open("wb") as out:
            hash_shard(rootfs, walk_file, shard, out, ctx.observer.advanced)

    return work.publish(f"fragment-{shard.offset}", write).model_dump()


def _join_hash(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    return state.model_copy(update={"fragments": [FileRef.model_validate(result) for result in results]})


# --- compare: merge the shards, and hold what they found against the old tree --------------------


class _Compare(Generic[StateT]):
    """The one stage that differs between the flows: by where the old tree comes from."""

    def __init__(self, state_type: type[StateT], baseline: Baseline[StateT]) -> None:
        self._state_type = state_type
        self._baseline = baseline

    def plan(self, ctx: Context, state: StateT) -> list[Unit]:
        assert state.survey is not None
        return [] if state.survey.untouched else [unit_of(state), *plan_beside_comparing(state)]

    def run(self, ctx: Context, unit: Unit) -> dict[str, Any]:
        if is_tree_unit(unit):
            return run_tree_unit(ctx, unit)
        state = self._state_type.model_validate(unit.params)
        survey = state.survey
        assert survey is not None
        work = work_directory(ctx, state.store)
        tree = NewTree(work, survey, state.fragments, state.known)
        sockets: list[bytes] = []
        differing = _Counter()
        old = tree.replaced(lambda: self._baseline(ctx, state))
        new = _noting_sockets(tree.read(), sockets)
        found = differing.counted(compare(portable(old), portable(new)))
        wanted = simplify(mask(_unclamped(found, state.options.source_date_epoch), _mask_bytes(state.mask_paths)))
        changes = _write_changes(work, wanted)
        for _ in found:  # what is masked out is not read above, but makes the tree another one all the same
            pass
        warnings = [f"socket left out, no layer can hold one: {display(path)}" for path in sockets]
        compared = _Compared(changes=changes, differing=differing.count, sockets=len(sockets), warnings=warnings)
        return compared.model_dump(mode="json")

    def join(self, ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
        survey = state.survey
        assert survey is not None
        found, trees = split_results(results)
        compared = _Compared.model_validate(found[0]) if found else _Compared()
        return state.model_copy(
            update={
                "tree_digest": survey.tree or "",
                **trees,
                "changes": compared.changes,
                "differing": compared.differing,
                "tree_entries": survey.entries - compared.sockets,
                "warnings": state.warnings + compared.warnings,
            }
        )


class _Compared(Model):
    """What the compare unit found; as it is by default when nothing was touched."""

    changes: Changes = Changes()
    differing: int = 0
    sockets: int = 0
    warnings: list[str] = []


class _Counter:
    """Counts what passes."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        for delta in deltas:
            self.count += 1
            yield delta


def _noting_sockets(entries: Iterator[Entry], sockets: list[bytes]) -> Iterator[Entry]:
    for entry in entries:
        if entry.type == "socket":
            sockets.append(entry.path)
        yield entry


def _unclamped(deltas: Iterator[Delta], epoch: int | None) -> Iterator[Delta]:
    """Drop what differs only because the layer below was written with the same clamp of mtimes."""
    for delta in deltas:
        if (
            epoch is None
            or delta.keys != ("tar_time",)
            or delta.old is None
            or delta.new is None
            or min(delta.new.mtime // 1_000_000_000, epoch) != delta.old.mtime // 1_000_000_000
        ):
            yield delta


def _mask_bytes(paths: list[str]) -> list[bytes]:
    return [path.encode("utf-8", "surrogateescape") for path in paths]


def _write_changes(work: WorkDirectory, deltas: Iterator[Delta]) -> Changes:
    summary: DeltaSummary

    def write(path: Path) -> None:
        nonlocal summary
        with path.open("wb") as out:
            summary = write_deltas(deltas, out)

    ref = work.publish(_DELTAS, write)
    return Changes(file=ref, count=summary.paths, bytes=summary.bytes, newest_mtime=summary.newest_mtime)
