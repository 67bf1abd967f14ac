"""An image on another base: its own layers on top of others, and a config that takes over what the base changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from layerfarm.jobs.image import HistoryEntry, ImageConfig, Resolved
from layerfarm.jobs.image.documents import ConfigSection, Manifest, timestamp
from layerfarm.jobs.store import Descriptor

BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
BASE_NAME: Final = "org.opencontainers.image.base.name"

ValueT = TypeVar("ValueT")


def rebased_manifest(image: Resolved, below: int, new_base: Resolved) -> Manifest:
    """The image's manifest with the new base's layers instead of the ``below`` lowest.

    The annotation that names the base's digest is set; that of its name, which may be of another version, goes.
    """
    annotations = {**(image.manifest.annotations or {}), BASE_DIGEST: new_base.descriptor.digest}
    annotations.pop(BASE_NAME, None)
    layers: list[Descriptor] = [*new_base.manifest.layers, *image.manifest.layers[below:]]
    return image.manifest.model_copy(update={"layers": layers, "annotations": annotations})


def rebased_config(
    image: Resolved, old_base: Resolved, new_base: Resolved, epoch: int | None
) -> tuple[ImageConfig, list[str]]:
    """The image's config on the new base, and the settings that both have changed (the image's stay).

    What the image has as its old base had it becomes as the new base has it: variables, labels, ports,
    the user. What the image set itself stays.
    """
    old, below = image.config, len(old_base.manifest.layers)
    ids = [*new_base.config.rootfs.diff_ids, *old.rootfs.diff_ids[below:]]
    changes: dict[str, Any] = {"rootfs": old.rootfs.model_copy(update={"diff_ids": ids})}
    if epoch is not None:
        changes["created"] = timestamp(epoch)
    if old.history is not None:
        changes["history"] = [*(new_base.config.history or []), *_own_history(old.history, old_base.config, below)]
    conflicts: list[str] = []
    changes["config"] = _section(old.config, old_base.config.config, new_base.config.config, conflicts)
    return old.model_copy(update=changes), sorted(conflicts)


def _own_history(history: list[HistoryEntry], old_base: ImageConfig, below: int) -> list[HistoryEntry]:
    """The steps that came after those of the base; counted by layers where the base's are not the first ones."""
    known = old_base.history or []
    if history[: len(known)] == known:
        return history[len(known) :]
    layers = 0
    for position, entry in enumerate(history):
        if layers == below and not entry.empty_layer:
            return history[position:]
        layers += not entry.empty_layer
    return []


def _section(
    image: ConfigSection | None, old: ConfigSection | None, new: ConfigSection | None, conflicts: list[str]
) -> ConfigSection | None:
    merged = _merge_mappings(_plain(image), _plain(old), _plain(new), conflicts)
    return ConfigSection.model_validate(merged) if merged or image is not None else None


def _plain(section: ConfigSection | None) -> dict[str, Any]:
    return {} if section is None else section.model_dump(by_alias=True, exclude_none=True)


def _merge_mappings(
    image: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], conflicts: list[str], where: str = ""
) -> dict[str, Any]:
    """Three ways into one, key by key, in the order of the image's and then the new base's."""
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
