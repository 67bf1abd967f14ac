"""Change an image's configuration: what ``config`` does once its flags are parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.image.documents import ConfigSection, HistoryEntry, ImageConfig, Manifest
from layerfarm.jobs.image.mutate import continued, write_image
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.image.timestamps import check_timestamp
from layerfarm.jobs.store import Layout

CLEARABLE: Mapping[str, str] = {
    "config.labels": "labels",
    "config.exposedports": "exposed_ports",
    "config.env": "env",
    "config.entrypoint": "entrypoint",
    "config.cmd": "cmd",
    "config.volume": "volumes",
}
"""The keys of ``--clear``, and the fields that they empty; ``manifest.annotations`` is one, too."""
_CLEAR_ANNOTATIONS = "manifest.annotations"


@dataclass(frozen=True)
class ConfigChanges:
    """What is to change, in the words of umoci's flags. None or empty: stays as it is.

    Of two values for one name the later wins. ``clear`` comes first, so that a list can be replaced.
    """

    user: str | None = None
    exposed_ports: Sequence[str] = ()
    """Added; ``80/tcp``."""
    env: Sequence[str] = ()
    """``NAME=VALUE``; a name that is there keeps its place."""
    entrypoint: Sequence[str] | None = None
    """Replaced as a whole, like ``cmd``."""
    cmd: Sequence[str] | None = None
    volumes: Sequence[str] = ()
    """Added."""
    labels: Sequence[str] = ()
    """``NAME=VALUE``."""
    working_dir: str | None = None
    stop_signal: str | None = None
    created: str | None = None
    """RFC 3339."""
    author: str | None = None
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    annotations: Sequence[str] = ()
    """``NAME=VALUE``, on the manifest."""
    clear: Sequence[str] = ()


def configure(layout: Layout, image: Resolved, changes: ConfigChanges, history: HistoryEntry | None) -> Resolved:
    """The image with ``changes`` made; layers and every field not spoken of stay.

    ``history`` is appended, marked as an entry without a layer; None appends none. An entry without an
    author gets that of the changed image.

    Raises:
        RequestError: a value that makes no sense; nothing has been written then.
    """
    config = _changed_config(image.config, changes)
    manifest = _changed_manifest(image.manifest, changes)
    if history is not None:
        entry = history.model_copy(update={"empty_layer": True})
        config = config.model_copy(update={"history": continued(config, entry)})
    return write_image(layout, image.path, manifest, config)


def _changed_config(config: ImageConfig, changes: ConfigChanges) -> ImageConfig:
    update: dict[str, Any] = {"config": _changed_section(config.config or ConfigSection(), changes)}
    for name in ("author", "os", "architecture", "variant"):
        value = getattr(changes, name)
        if value is not None:
            # Without an author or variant the field is absent; the other two are required (config.md), so umoci writes
            # them empty.
            update[name] = value if name in ("os", "architecture") else value or None
    if changes.created is not None:
        update["created"] = check_timestamp(changes.created)
    return config.model_copy(update=update)


def _changed_section(section: ConfigSection, changes: ConfigChanges) -> ConfigSection:
    update: dict[str, Any] = dict.fromkeys(_cleared(changes.clear))
    found = section.model_copy(update=update)
    if changes.user is not None:
        update["user"] = changes.user or None
    if changes.working_dir is not None:
        update["working_dir"] = changes.working_dir or None
    if changes.stop_signal is not None:
        update["stop_signal"] = changes.stop_signal or None
    if changes.entrypoint is not None:
        update["entrypoint"] = list(changes.entrypoint) or None
    if changes.cmd is not None:
        update["cmd"] = list(changes.cmd) or None
    if changes.exposed_ports:
        update["exposed_ports"] = (found.exposed_ports or {}) | _set("exposed port", changes.exposed_ports)
    if changes.volumes:
        update["volumes"] = (found.volumes or {}) | _set("volume", changes.volumes)
    if changes.env:
        update["env"] = _merged_env(found.env or [], _pairs("--config.env", changes.env))
    if changes.labels:
        update["labels"] = (found.labels or {}) | _pairs("--config.label", changes.labels)
    return section.model_copy(update=update)


def _changed_manifest(manifest: Manifest, changes: ConfigChanges) -> Manifest:
    annotations = None if _CLEAR_ANNOTATIONS in changes.clear else manifest.annotations
    if changes.annotations:
        annotations = (annotations or {}) | _pairs("--manifest.annotation", changes.annotations)
    return manifest.model_copy(update={"annotations": annotations})


def _cleared(keys: Iterable[str]) -> list[str]:
    fields = []
    for key in keys:
        if key == "rootfs.diffids":
            raise RequestError("--clear=rootfs.diffids would break the image")
        if key != _CLEAR_ANNOTATIONS and key not in CLEARABLE:
            known = ", ".join(sorted([*CLEARABLE, _CLEAR_ANNOTATIONS]))
            raise RequestError(f"nothing to clear is called {key[:100]!r}", hint=f"one of {known}")
        if key in CLEARABLE:
            fields.append(CLEARABLE[key])
    return fields


def _pairs(flag: str, values: Iterable[str]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise RequestError(f"{flag} is not NAME=VALUE: {value[:200]!r}")
        found[name] = content
    return found


def _set(what: str, values: Iterable[str]) -> dict[str, Any]:
    """A set as Go writes it: an object with empty objects for values."""
    for value in values:
        if not value:
            raise RequestError(f"{what} is empty")
    return {value: {} for value in values}


def _merged_env(old: Sequence[str], new: Mapping[str, str]) -> list[str]:
    found = {entry.partition("=")[0]: entry for entry in old}
    return list((found | {name: f"{name}={value}" for name, value in new.items()}).values())
