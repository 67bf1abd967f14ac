"""Configs, and manifests, of transformed images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from layerfarm.jobs.image import HistoryEntry, ImageConfig, PackedLayer, Resolved
from layerfarm.jobs.image.documents import ConfigSection, Manifest, timestamp
from layerfarm.jobs.image.mutate import completed

BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
BASE_NAME: Final = "org.opencontainers.image.base.name"
BUILDPACKS: Final = "io.buildpacks.lifecycle.metadata"
"""Label in which Cloud Native Buildpacks record the layers of an image, by their diff_ids.

``pack rebase`` replaces the layers up to ``runImage.topLayer``, and ``pack build`` reuses the layers of buildpacks
(buildpacks spec, platform.md "io.buildpacks.lifecycle.metadata"). Both fail, or change the wrong layers, if the label
does not match the image.
"""


def with_diff_ids(config: ImageConfig, diff_ids: Sequence[str]) -> ImageConfig:
    """Return the config of an image with the same layers in other tars."""
    return _changed(config, diff_ids, config.history, None)


def _changed(
    config: ImageConfig,
    diff_ids: Sequence[str],
    history: list[HistoryEntry] | None,
    epoch: int | None,
) -> ImageConfig:
    rootfs = config.rootfs.model_copy(update={"diff_ids": list(diff_ids)})
    changes: dict[str, object] = {"rootfs": rootfs, "history": history}
    if epoch is not None:
        changes["created"] = timestamp(epoch)
    return config.model_copy(update=changes)


# --- squash and strip ----------------------------------------------------------------------------


def squashed_config(
    config: ImageConfig, keep: int, upto: int, diff_id: str, old: str, epoch: int | None
) -> ImageConfig:
    """Return the config of an image whose layers ``keep`` + 1 to ``upto`` were merged into the layer ``diff_id``.

    As in Docker, the steps that made those layers stay in the history as empty ones, followed by one that
    made the merged layer. ``old``: digest of the manifest.
    """
    ids = config.rootfs.diff_ids
    history = None
    if config.history is not None:
        what = f"layers {keep + 1} to {upto} of {old}"
        step = HistoryEntry(created=_created(config, keep, upto, epoch), created_by="layerfarm squash", comment=what)
        history = list(_squashed_history(config.history, keep, upto, step))
    return _changed(config, [*ids[:keep], diff_id, *ids[upto:]], history, epoch)


def _squashed_history(
    history: list[HistoryEntry], keep: int, upto: int, merged: HistoryEntry
) -> Iterator[HistoryEntry]:
    number = 0
    for entry in history:
        if entry.empty_layer:
            yield entry
            continue
        number += 1
        yield _emptied(entry) if keep < number <= upto else entry
        if number == upto:
            yield merged
    if number < upto:
        yield merged


def _emptied(entry: HistoryEntry) -> HistoryEntry:
    return entry.model_copy(update={"empty_layer": True})


def _created(config: ImageConfig, keep: int, upto: int, epoch: int | None) -> str | None:
    """Return the time of the merged layer: the epoch, else the time of the newest layer in it."""
    if epoch is not None:
        return timestamp(epoch)
    filled = [entry for entry in config.history or [] if not entry.empty_layer]
    known = [entry.created for entry in filled[keep:upto] if entry.created is not None]
    return known[-1] if known else config.created


def stripped_config(
    config: ImageConfig, done: Mapping[int, PackedLayer], patterns: Sequence[str], epoch: int | None
) -> ImageConfig:
    """Return the config of a stripped image, with one more history entry. ``done``: new layers by position from 0."""
    ids = [done[at].diff_id if at in done else diff_id for at, diff_id in enumerate(config.rootfs.diff_ids)]
    history = None
    if config.history is not None:
        created = config.created if epoch is None else timestamp(epoch)
        step = HistoryEntry(created=created, created_by=f"layerfarm strip {' '.join(patterns)}", empty_layer=True)
        history = [*config.history, step]
    return _changed(config, ids, history, epoch)


# --- rechunk -------------------------------------------------------------------------------------


def rechunked_config(
    config: ImageConfig, keep: int, names: Sequence[str], diff_ids: Sequence[str], old: str, epoch: int | None
) -> ImageConfig:
    """Return the config of a rechunked image: the old steps stay in the history, as empty ones above the kept layers.

    The comment of a step is the name of its layer, where it survives tools that drop annotations (relayer.md "Traps").
    ``old``: digest of the manifest.
    """
    ids = [*config.rootfs.diff_ids[:keep], *diff_ids]
    history: list[HistoryEntry] = []
    number = 0
    for entry in config.history or []:
        number += not entry.empty_layer
        history.append(_emptied(entry) if not entry.empty_layer and number > keep else entry)
    if number < keep:
        # Some kept layers have no step, but steps must match the layers.
        return _changed(config, ids, None, epoch)
    created = timestamp(epoch) if epoch is not None else config.created
    for name in names:
        step = HistoryEntry(created=created, created_by=f"layerfarm rechunk of {old}", comment=name)
        history.append(completed(step, config))
    return _changed(config, ids, history, epoch)


# --- rebase --------------------------------------------------------------------------------------


def rebased_manifest(image: Resolved, below: int, new_base: Resolved) -> Manifest:
    """Return the image's manifest with the new base's layers instead of the ``below`` lowest.

    The annotation with the base's digest is set; the one with its name, which may include the version, is removed.
    """
    annotations = {**(image.manifest.annotations or {}), BASE_DIGEST: new_base.descriptor.digest}
    annotations.pop(BASE_NAME, None)
    layers = [*new_base.manifest.layers, *image.manifest.layers[below:]]
    return image.manifest.model_copy(update={"layers": layers, "annotations": annotations})


def rebased_config(
    image: Resolved, old_base: Resolved, new_base: Resolved, epoch: int | None
) -> tuple[ImageConfig, list[str]]:
    """Return the image's config on the new base, and warnings.

    A setting that the image inherited from its old base (variables, labels, ports, the user) gets the new
    base's value. The image's own setting stays, with a warning if the base changed it too.
    """
    old, below = image.config, len(old_base.manifest.layers)
    ids = [*new_base.config.rootfs.diff_ids, *old.rootfs.diff_ids[below:]]
    history = None
    if old.history is not None:
        history = [*(new_base.config.history or []), *_own_history(old.history, old_base.config, below)]
    conflicts: list[str] = []
    before, after = _plain(old_base.config.config), _plain(new_base.config.config)
    merged = _merge_mappings(_plain(old.config), before, after, conflicts)
    warnings = [f"set by the image and changed by the base, the image's value is kept: {n}" for n in sorted(conflicts)]
    if BUILDPACKS in merged.get("Labels", {}):
        label, warning = _rebased_label(merged["Labels"][BUILDPACKS], old_base, new_base)
        merged["Labels"][BUILDPACKS] = label
        warnings += [warning] if warning else []
    section = ConfigSection.model_validate(merged) if merged or old.config is not None else None
    rebased = _changed(old, ids, history, epoch).model_copy(update={"config": section})
    return rebased, warnings


def _own_history(history: list[HistoryEntry], old_base: ImageConfig, below: int) -> list[HistoryEntry]:
    """Return the steps after those of the base; by the number of layers if the base's steps are not the first."""
    known = old_base.history or []
    if history[: len(known)] == known:
        return history[len(known) :]
    layers = 0
    for position, entry in enumerate(history):
        if layers == below and not entry.empty_layer:
            return history[position:]
        layers += not entry.empty_layer
    return []


def _plain(section: ConfigSection | None) -> dict[str, Any]:
    return {} if section is None else section.model_dump(by_alias=True, exclude_none=True)


def _merge_mappings(
    image: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], conflicts: list[str], where: str = ""
) -> dict[str, Any]:
    """Merge three-way, key by key, in the order of the image's and then the new base's keys."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys([*image, *new]):
        mine, before, after = image.get(key), old.get(key), new.get(key)
        if key == "Env" and not where:
            variables = _merge_mappings(_variables(mine), _variables(before), _variables(after), conflicts, "Env ")
            value: Any = [f"{name}={text}" for name, text in variables.items()]
        elif isinstance(mine, dict) and isinstance(after, dict):
            value = _merge_mappings(mine, before or {}, after, conflicts, f"{key} ")
        elif mine == before:
            value = after
        else:
            value = mine
            if after not in (before, mine):
                conflicts.append(where + key)
        if value is not None:
            merged[key] = value
    return merged


def _variables(env: list[str] | None) -> dict[str, str]:
    return {name: text for name, _, text in (variable.partition("=") for variable in env or [])}


# --- the label of buildpacks ---------------------------------------------------------------------


def _rebased_label(label: str, old_base: Resolved, new_base: Resolved) -> tuple[str, str | None]:
    """Return the label of an image on its new base, and a warning if it does not match.

    As the lifecycle's rebaser does, ``runImage.topLayer`` becomes the topmost layer of the new base, and the digest in
    ``runImage.reference`` the new base's. Everything else stays.
    """
    try:
        metadata: Any = json.loads(label)
        run_image = metadata["runImage"]
        top = run_image["topLayer"]
        if not isinstance(top, str):
            raise TypeError
        below, above = old_base.config.rootfs.diff_ids, new_base.config.rootfs.diff_ids
        if top not in below:
            return label, None  # the run image ends above this base, in layers that stay
        if top != below[-1] or not above:
            return label, f"the run image is not the base: topLayer of the label {BUILDPACKS} is not changed"
        run_image["topLayer"] = above[-1]
        if isinstance(run_image.get("reference"), str):
            run_image["reference"] = _moved(run_image["reference"], old_base, new_base)
        text = json.dumps(metadata, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
        return text, None
    except (ValueError, LookupError, TypeError, RecursionError, AttributeError):
        return label, f"label {BUILDPACKS} is not in the form of buildpacks, and is not changed"


def _moved(reference: str, old_base: Resolved, new_base: Resolved) -> str:
    """Return the reference with the digest of the new base: its manifest's, or its configuration's as in a daemon."""
    pairs = (
        (old_base.descriptor.digest, new_base.descriptor.digest),
        (old_base.manifest.config.digest, new_base.manifest.config.digest),
    )
    return next((reference.replace(old, new) for old, new in pairs if old in reference), reference)


def untrue_label(old: ImageConfig, new: ImageConfig) -> str | None:
    """Return a warning if the label names layers of the old image that the new one does not have; else None."""
    label = ((new.config.labels if new.config else None) or {}).get(BUILDPACKS, "")
    gone = set(old.rootfs.diff_ids).difference(new.rootfs.diff_ids)
    if not any(diff_id in label for diff_id in gone):
        return None
    return f"label {BUILDPACKS} names layers that the new image does not have: buildpacks cannot rebase or rebuild it"
