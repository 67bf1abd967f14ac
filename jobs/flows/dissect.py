"""The part of ``rechunk`` that reads: take an image apart, and say of each layer to be what goes into it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import Context, FileRef, Model, Unit, WorkDirectory, name_of_work, work_directory
from layerfarm.jobs.flows.transforms import ComponentRule
from layerfarm.jobs.image import PackedLayer, Resolved, resolve_walk
from layerfarm.jobs.relayer.analysis import AnalysisOptions, Analyzed, analyze, keep_analysis, kept_analysis
from layerfarm.jobs.relayer.components import Rule
from layerfarm.jobs.relayer.planner.plan import Plan
from layerfarm.jobs.relayer.rechunk import LayerToBe, layers_to_be, read_plan, recipe_of
from layerfarm.jobs.relayer.spool import Difference, Spool, read_image
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import read_result, write_result

_LAYERS = "layers"
_LEVELS = {Compression.GZIP: 6, Compression.ZSTD: 9}
"""By default slower than the builds' own: who lays an image out anew does it once, for fewer bytes in every pull."""


class Task(Model):
    """One image of the set, and how it is to be laid out."""

    image: Descriptor
    keep: int
    compression: Compression


class Listed(Model):
    """One layer to be."""

    name: str
    digest: str
    """Of what it holds."""
    packed: PackedLayer | None = None
    """It is in the store already."""
    recipe: FileRef | None = None
    """What to write into it, else."""
    spool: FileRef | None = None
    bytes: int = 0
    """Of content."""


class Listing(Model):
    """The layers of one image, lowest first: a file in the work directory."""

    layers: list[Listed]


class Laid(Model):
    """What was found out about one image."""

    listing: FileRef
    warnings: list[str] = []


class ReadUnit(Model):
    """What :func:`run_read` is given."""

    source: Path
    target: Path
    task: Task
    budget: int
    plan: str | None
    level: int | None
    epoch: int | None
    components: list[ComponentRule]

    def options(self) -> AnalysisOptions:
        return analysis_options(self.task.keep, self.epoch, self.components)


def analysis_options(keep: int, epoch: int | None, components: Sequence[ComponentRule]) -> AnalysisOptions:
    """How an image is taken apart, from the fields of a request."""
    return AnalysisOptions(keep, epoch, tuple(Rule(rule.name, tuple(rule.paths)) for rule in components))


def run_read(ctx: Context, unit: Unit) -> dict[str, Any]:
    """One image: its :class:`Laid`. What is known is not read again."""
    params = ReadUnit.model_validate(unit.params)
    source = Layout.open(ctx.policy.check_store(params.source))
    target = Layout.open(ctx.policy.check_store(params.target))
    work = work_directory(ctx, target.path)
    work.create()
    plan = None if params.plan is None else read_plan(target, params.plan)
    options = params.options()
    digest = params.task.image.digest
    analysis = kept_analysis(source, digest, options) or kept_analysis(target, digest, options)
    if analysis is not None:
        layers = [_known(target, layer, params) for layer in layers_to_be(analysis, plan, params.budget)]
        if all(layer.packed is not None for layer in layers):
            return _laid(work, params, layers, list(analysis.warnings))
    image = resolve_walk(source, [params.task.image])
    return _read(ctx, source, target, work, image, plan, params)


def _read(
    ctx: Context,
    source: Layout,
    target: Layout,
    work: WorkDirectory,
    image: Resolved,
    plan: Plan | None,
    params: ReadUnit,
) -> dict[str, Any]:
    options = params.options()
    content, spool_file = spooled(ctx, work, source, image, params.task.keep)
    with Spool(work.open(spool_file)) as spool:
        analyzed = analyze(image.descriptor.digest, content, spool, options)
    if not keep_analysis(source, analyzed.analysis, options):
        keep_analysis(target, analyzed.analysis, options)
    layers = []
    for layer in layers_to_be(analyzed.analysis, plan, params.budget):
        known = _known(target, layer, params)
        if known.packed is None:
            known = _described(work, known, layer, content, analyzed, params, spool_file)
        layers.append(known)
    return _laid(work, params, layers, list(analyzed.analysis.warnings))


def _known(target: Layout, layer: LayerToBe, params: ReadUnit) -> Listed:
    """The layer, with its blob if that was written before and is still there."""
    content = read_result(target, _LAYERS, name_of_layer(layer.digest, params.task.compression, params.level))
    packed = None
    if content is not None:
        with suppress(ValueError):
            packed = PackedLayer.model_validate_json(content)
    if packed is not None and not target.claim(packed.descriptor):
        packed = None
    return Listed(name=layer.name, digest=layer.digest, packed=packed)


def _described(
    work: WorkDirectory,
    known: Listed,
    layer: LayerToBe,
    content: Difference,
    analyzed: Analyzed,
    params: ReadUnit,
    spool: FileRef,
) -> Listed:
    sizes = {part.key: part.size for part in analyzed.analysis.parts}

    def write(path: Path) -> None:
        with path.open("wb") as out:
            out.writelines(recipe_of(layer, content, analyzed, params.epoch))

    recipe = work.publish(f"recipe-{_short(params.task.image.digest)}-{layer.digest[:16]}", write)
    return known.model_copy(update={"recipe": recipe, "spool": spool, "bytes": sum(sizes[key] for key in layer.keys)})


def _laid(work: WorkDirectory, params: ReadUnit, layers: list[Listed], warnings: list[str]) -> dict[str, Any]:
    document = Listing(layers=layers).model_dump_json(by_alias=True)

    def write(path: Path) -> None:
        path.write_text(document)

    listing = work.publish(f"listing-{_short(params.task.image.digest)}", write)
    return Laid(listing=listing, warnings=warnings).model_dump(mode="json")


def spooled(
    ctx: Context, work: WorkDirectory, source: Layout, image: Resolved, keep: int
) -> tuple[Difference, FileRef]:
    """Read an image into a spool in the work directory."""
    content: Difference

    def fill(path: Path) -> None:
        nonlocal content
        content = read_image(source, image, keep, path, ctx.observer.advanced)

    spool = work.publish(f"spool-{_short(image.descriptor.digest)}", fill)
    return content, spool


def chosen_codec(compression: Compression, level: int | None, threads: int = 1) -> Codec:
    """How a layer is compressed."""
    return Codec(compression, level=_LEVELS.get(compression) if level is None else level, threads=threads)


def name_of_layer(digest: str, compression: Compression, level: int | None) -> str:
    """What stands for a layer that holds this, so compressed, in any image."""
    return name_of_work("chunk", codec_id(chosen_codec(compression, level)), digest)


def note_layer(target: Layout, name: str, packed: PackedLayer) -> None:
    """Keep for later images that the layer is written."""
    write_result(target, _LAYERS, name, packed.model_dump_json(by_alias=True).encode())


def _short(digest: str) -> str:
    return digest.partition(":")[2][:32]
