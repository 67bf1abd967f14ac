"""Laying one image out anew: which layers it is to have, and what its config tells of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from layerfarm.jobs.errors import BlobNotFound, TransformError
from layerfarm.jobs.image import HistoryEntry, ImageConfig
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.image.mutate import completed
from layerfarm.jobs.relayer.analysis import Analysis, AnalysisOptions, decode_analysis
from layerfarm.jobs.relayer.planner.plan import MOST_LAYERS, Plan, divide, parse_plan
from layerfarm.jobs.relayer.planner.search import PlanOptions, make_plan
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.result_cache import read_result, write_result

MEDIA_TYPE_PLAN: Final = "application/vnd.layerfarm.plan.v1+json"
DIRECTORIES: Final = "directories"
"""Name of the last layer, which gives directories their metadata."""
DELETIONS: Final = "deletions"
"""Name of the first layer above kept ones, where something in them is gone."""

_ANALYSES = "analyses"


class LayerToBe(NamedTuple):
    """One layer above the kept ones."""

    name: str
    digest: str
    """Of what it holds."""
    keys: tuple[str, ...] = ()
    """Of its parts; none for :data:`DIRECTORIES` and :data:`DELETIONS`."""


def note_of(manifest: str, options: AnalysisOptions) -> str:
    """The name under which the analysis of an image is kept."""
    known = [Analysis.model_fields["version"].default, manifest, options.keep, options.epoch, options.rules]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def kept_analysis(layout: Layout, manifest: str, options: AnalysisOptions) -> Analysis | None:
    """The analysis of an image that was made before, if it is still there."""
    content = read_result(layout, _ANALYSES, note_of(manifest, options))
    return None if content is None else decode_analysis(content)


def keep_analysis(layout: Layout, analysis: Analysis, options: AnalysisOptions) -> bool:
    """Keep an analysis for :func:`kept_analysis`. False: it cannot be written, because the store may only be read."""
    return write_result(layout, _ANALYSES, note_of(analysis.image, options), analysis.encode())


def put_plan(layout: Layout, plan: Plan) -> str:
    """Put a plan into the store, for the jobs that follow it; returns the blob's digest."""
    return layout.put(plan.encode(), MEDIA_TYPE_PLAN).digest


def read_plan(layout: Layout, digest: str) -> Plan:
    """The plan of :func:`put_plan`. It counts as just used.

    Raises:
        BlobNotFound: the store does not hold it; DigestMismatch: it is damaged.
        MalformedPlan: it is none.
    """
    try:
        size = layout.blob_path(digest).stat().st_size
    except OSError as error:
        raise BlobNotFound("store does not hold the plan", where=digest) from error
    blob = Descriptor(mediaType=MEDIA_TYPE_PLAN, digest=digest, size=size)
    layout.claim(blob)
    return parse_plan(layout.read(blob), digest)


def layers_to_be(analysis: Analysis, plan: Plan | None, budget: int) -> list[LayerToBe]:
    """The layers above the kept ones, lowest first. Without a plan: one made for this image alone.

    Raises:
        TransformError: with the layers that are kept the budget leaves no room.
    """
    if analysis.parts and analysis.room(budget) < 1:
        raise TransformError(
            f"{analysis.keep} kept layers leave no room in a budget of {budget}",
            where=analysis.image,
            hint=f"keep fewer layers, or allow more, up to {MOST_LAYERS}",
        )
    image = analysis.snapshot("", 0, "", budget)
    chunks = divide(plan or make_plan([image], PlanOptions(spare=0)), image.parts, image.room)
    layers = [LayerToBe(chunk.name, chunk.digest, tuple(part.key for part in chunk.parts)) for chunk in chunks]
    if analysis.deletions is not None:
        layers.insert(0, LayerToBe(DELETIONS, analysis.deletions))
    if analysis.directories is not None:
        layers.append(LayerToBe(DIRECTORIES, analysis.directories))
    return layers


def rechunked_config(
    config: ImageConfig, keep: int, names: Sequence[str], diff_ids: Sequence[str], old: str, epoch: int | None
) -> ImageConfig:
    """The config of the new image: the old steps stay in the history, as empty ones above the kept layers.

    The name of each layer stands in the comment of its step, where it survives tools that drop annotations
    (relayer.md "Traps").
    """
    ids = config.rootfs.diff_ids
    changes: dict[str, object] = {
        "rootfs": config.rootfs.model_copy(update={"diff_ids": [*ids[:keep], *diff_ids]}),
    }
    created = timestamp(epoch) if epoch is not None else config.created
    if epoch is not None:
        changes["created"] = created
    history: list[HistoryEntry] = []
    number = 0
    for entry in config.history or []:
        number += not entry.empty_layer
        emptied = not entry.empty_layer and number > keep
        history.append(entry.model_copy(update={"empty_layer": True}) if emptied else entry)
    if number < keep:
        # Steps and layers have to match, or none may be told: of the kept ones some have no step.
        return config.model_copy(update=changes | {"history": None})
    for name in names:
        step = HistoryEntry(created=created, created_by=f"layerfarm rechunk of {old}", comment=name)
        history.append(completed(step, config))
    return config.model_copy(update=changes | {"history": history})
