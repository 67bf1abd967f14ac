"""The stages that turn a tree on disk into a layer: survey, hash, compare, pack.

``build`` and ``repack`` share them; they differ in where the old tree comes from and in what is
published at the end. Every unit leaves its output as a file in the job's work directory, so a unit
that runs twice, or on another host, finds the same input and leaves the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from jobs.errors import display
from jobs.flows.base import Context, Equal, FileRef, Model, Stage, State, Unit, WorkDirectory, name_of_work
from jobs.flows.newtree import NewTree, Tree
from jobs.flows.requests import IdMapping, LayerOptions
from jobs.flows.survey import Known, Survey, survey_tree
from jobs.image.pack import PackedLayer, pack_layer
from jobs.image.tree_cache import portable
from jobs.layer import Codec, Compression, GenerateOptions, IdMap, codec_id, generate_layer
from jobs.mtree import (
    Delta,
    DeltaSummary,
    Entry,
    Shard,
    compare,
    hash_shard,
    mask,
    plan_shards,
    read_deltas,
    simplify,
    write_deltas,
)
from jobs.store import Layout

DELTAS = "deltas"
TREE = "tree"
EXACT_TREE = "bundle"


class Changes(Model):
    """The outcome of comparing the old tree with the new one."""

    file: FileRef | None = None
    """None: there are none."""
    count: int = 0
    bytes: int = 0
    """Content of the regular files to be packed."""
    newest_mtime: int | None = None
    """Seconds; over the Extra and Modified paths."""


class LayeringState(State):
    """What the shared stages know; the flows' own states extend it."""

    store: Path
    rootfs: Path
    options: LayerOptions
    compression: Compression
    mask_paths: list[str] = []
    uid_map: list[IdMapping] = []
    gid_map: list[IdMapping] = []
    rootless: bool = False
    known: Known | None = None
    """The bundle's own account of the rootfs, if it is one's."""
    exact: bool = False
    """Write down the new tree as it lies on disk, too: for the bundle's next repack."""
    survey: Survey | None = None
    fragments: list[FileRef] = []
    tree: Tree | None = None
    """The new tree as a layer can hold it; None if it is the old one."""
    exact_tree: Tree | None = None
    """None if not wanted, or if it is the old one."""
    tree_digest: str = ""
    """``sha256:`` digest of the manifest of the tree as a layer can hold it."""
    tree_entries: int = 0
    changes: Changes | None = None
    packed: PackedLayer | None = None
    warnings: list[str] = []


StateT = TypeVar("StateT", bound=LayeringState)
Baseline = Callable[[Context, StateT], Iterator[Entry]]
"""Opens the old tree, in mtree order; called inside the compare unit."""


def layering_stages(state_type: type[StateT], baseline: Baseline[StateT]) -> tuple[Stage[StateT], ...]:
    """The four stages, for a flow whose old tree is opened by ``baseline``."""
    compare_stage: _Compare[StateT] = _Compare(state_type, baseline)
    return (
        Stage("survey", _plan_survey, _run_survey, _join_survey),
        Stage("hash", _plan_hash, _run_hash, _join_hash),
        Stage("compare", compare_stage.plan, compare_stage.run, compare_stage.join),
        Stage("pack", _plan_pack, _run_pack, _join_pack, Equal(_name_of_pack, _is_packed)),
    )


def work_directory(ctx: Context, store: Path) -> WorkDirectory:
    """The job's work directory in a store that this worker may use.

    Raises:
        OutsideAllowedRoots: the operator does not allow the store.
    """
    return WorkDirectory(ctx.policy.check_store(store), ctx.job_id)


# --- survey: names and lstat of the whole tree ---------------------------------------------------


class _SurveyUnit(Model):
    store: Path
    rootfs: Path
    known: Known | None


def _plan_survey(ctx: Context, state: LayeringState) -> list[Unit]:
    return [unit_of(_SurveyUnit(store=state.store, rootfs=state.rootfs, known=state.known))]


def _run_survey(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _SurveyUnit.model_validate(unit.params)
    rootfs = ctx.policy.check_root(params.rootfs)
    work = work_directory(ctx, params.store)
    work.create()
    if params.known is not None:
        ctx.policy.check_root(params.known.cache.parent)
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
    rootfs = ctx.policy.check_root(params.rootfs)
    work = work_directory(ctx, params.store)
    walk_file = work.open(params.walk)
    shard = params.shard

    def write(path: Path) -> None:
        with path.open("wb") as out:
            hash_shard(rootfs, walk_file, shard, out, ctx.observer.advanced)

    return work.publish(f"fragment-{shard.offset}", write).model_dump()


def _join_hash(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    return state.model_copy(update={"fragments": [FileRef.model_validate(result) for result in results]})


# --- compare: merge the shards into the new manifest, and hold it against the old one ------------


class _Compare(Generic[StateT]):
    """The one stage that differs between the flows: by where the old tree comes from."""

    def __init__(self, state_type: type[StateT], baseline: Baseline[StateT]) -> None:
        self._state_type = state_type
        self._baseline = baseline

    def plan(self, ctx: Context, state: StateT) -> list[Unit]:
        assert state.survey is not None
        return [] if state.survey.untouched else [unit_of(state)]

    def run(self, ctx: Context, unit: Unit) -> dict[str, Any]:
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
        # Where nothing differs the tree as a layer can hold it is the old one, whatever was suspected.
        packed = tree.write(TREE) if differing.count or survey.reading is None else None
        exact = tree.write(EXACT_TREE, exact=True) if state.exact else None
        warnings = [f"socket left out, no layer can hold one: {display(path)}" for path in sockets]
        compared = _Compared(changes=changes, tree=packed, exact_tree=exact, sockets=len(sockets), warnings=warnings)
        return compared.model_dump(mode="json")

    def join(self, ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
        survey = state.survey
        assert survey is not None
        compared = _Compared.model_validate(results[0]) if results else _Compared()
        digest = f"sha256:{compared.tree.manifest.sha256}" if compared.tree else survey.tree
        return state.model_copy(
            update={
                "changes": compared.changes,
                "tree": compared.tree,
                "exact_tree": compared.exact_tree,
                "tree_digest": digest,
                "tree_entries": survey.entries - compared.sockets,
                "warnings": state.warnings + compared.warnings,
            }
        )


class _Compared(Model):
    """What the compare unit found; as it is by default when nothing was touched."""

    changes: Changes = Changes()
    tree: Tree | None = None
    exact_tree: Tree | None = None
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

    ref = work.publish(DELTAS, write)
    return Changes(
        file=ref, count=summary.count, bytes=summary.bytes_to_pack, newest_mtime=summary.newest_mtime_seconds
    )


# --- pack: the changed paths as one layer in the store -------------------------------------------


class _PackUnit(Model):
    store: Path
    rootfs: Path
    changes: FileRef
    tree: str
    """Digest of what was found and read of the tree, inodes and times too: so two trees that are equal but
    for how their hard links go are not taken for one."""
    compression: Compression
    level: int | None
    source_date_epoch: int | None
    uid_map: list[IdMapping]
    gid_map: list[IdMapping]
    rootless: bool


def _plan_pack(ctx: Context, state: LayeringState) -> list[Unit]:
    assert state.changes is not None
    if state.changes.count == 0 or state.changes.file is None:
        return []
    params = _PackUnit(
        store=state.store,
        rootfs=state.rootfs,
        changes=state.changes.file,
        tree=_tree_as_read(state),
        compression=state.compression,
        level=state.options.level,
        source_date_epoch=state.options.source_date_epoch,
        uid_map=state.uid_map,
        gid_map=state.gid_map,
        rootless=state.rootless,
    )
    return [unit_of(params, nbytes=state.changes.bytes)]


def _run_pack(ctx: Context, unit: Unit) -> dict[str, Any]:
    params = _PackUnit.model_validate(unit.params)
    rootfs = ctx.policy.check_root(params.rootfs)
    work = work_directory(ctx, params.store)
    warnings: list[str] = []
    options = GenerateOptions(
        uid_map=id_map(params.uid_map),
        gid_map=id_map(params.gid_map),
        rootless=params.rootless,
        source_date_epoch=params.source_date_epoch,
        warn=warnings.append,
        advanced=ctx.observer.advanced,
    )
    codec = Codec(params.compression, level=params.level, threads=ctx.policy.threads)
    with work.open(params.changes).open("rb") as stream:
        layer = generate_layer(rootfs, read_deltas(stream), options)
        packed = pack_layer(Layout.open(params.store), layer, codec)
    return {"packed": packed.model_dump(by_alias=True), "warnings": warnings}


def _tree_as_read(state: LayeringState) -> str:
    assert state.survey is not None
    return name_of_work("tree", state.survey.walk.sha256, state.survey.tree, [ref.sha256 for ref in state.fragments])


def _name_of_pack(ctx: Context, unit: Unit) -> str:
    params = _PackUnit.model_validate(unit.params)
    codec = codec_id(Codec(params.compression, level=params.level))
    return name_of_work("pack", codec, params.model_dump(mode="json"))


def _is_packed(ctx: Context, unit: Unit, result: dict[str, Any]) -> bool:
    params = _PackUnit.model_validate(unit.params)
    packed = PackedLayer.model_validate(result["packed"])
    return Layout.open(ctx.policy.check_store(params.store)).claim(packed.descriptor)


def _join_pack(ctx: Context, state: StateT, results: list[dict[str, Any]]) -> StateT:
    if not results:
        return state
    (result,) = results
    return state.model_copy(
        update={
            "packed": PackedLayer.model_validate(result["packed"]),
            "warnings": state.warnings + result["warnings"],
        }
    )


def id_map(rows: list[IdMapping]) -> IdMap:
    """The id map of a request or a bundle in the layer room's form."""
    return IdMap.of(*((row.container, row.host, row.size) for row in rows))


def unit_of(params: Model, nbytes: int = 0) -> Unit:
    """A unit that is given ``params`` and reads or writes about ``nbytes``."""
    return Unit(params=params.model_dump(mode="json"), bytes=nbytes)
