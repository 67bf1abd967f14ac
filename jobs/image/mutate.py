"""Derive a new image from an old one: another layer, another config. Writes blobs; the caller sets the tag.

Everything else is kept: unknown fields, the platform's variant (umoci loses both, umoci.md B7), annotations, the
embedded platform of nested indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from layerfarm.jobs.errors import MalformedDocument, RequestError
from layerfarm.jobs.image.documents import ConfigSection, HistoryEntry, ImageConfig, Manifest, RootFS, check_timestamp
from layerfarm.jobs.image.resolve import Resolved, host_platform, read_index
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout, Platform

if TYPE_CHECKING:
    from layerfarm.jobs.image.pack import PackedLayer

_EPOCH: Final = "1970-01-01T00:00:00Z"


def new_image(layout: Layout, created: str | None = None, platform: Platform | None = None) -> Resolved:
    """Return an image without layers: ``umoci new``. The caller tags ``.path[0]``.

    ``created`` is RFC 3339. Without it the image has no creation time, so that the same call gives the same image
    (law 1, docs/architecture.md). The platform defaults to this machine's.

    Raises:
        RequestError: ``created`` is not RFC 3339.
    """
    return write_image(layout, (), _empty_manifest(), _empty_config(created, platform or host_platform()))


def _empty_config(created: str | None, platform: Platform) -> ImageConfig:
    return ImageConfig(
        created=None if created is None else check_timestamp(created),
        architecture=platform.architecture,
        os=platform.os,
        variant=platform.variant,
        config=ConfigSection(),
        rootfs=RootFS(diff_ids=[]),
    )


def _empty_manifest() -> Manifest:
    """Return a manifest whose config :func:`write_image` fills in."""
    nowhere = Descriptor(mediaType=MEDIA_TYPE_CONFIG, digest=f"sha256:{'0' * 64}", size=0)
    return Manifest(mediaType=MEDIA_TYPE_MANIFEST, config=nowhere, layers=[])


def append_layer(
    layout: Layout,
    base: Resolved | None,
    layer: PackedLayer | None,
    history: HistoryEntry | None,
    created: str | None = None,
) -> Resolved:
    """Add one layer on top of ``base`` or of an empty image.

    Without a ``layer`` (nothing changed) only the history entry is added, marked as empty; None adds no entry.
    ``created`` (RFC 3339), if given, replaces the image's time.

    Raises:
        RequestError: a time that is not RFC 3339; no document has been written then.
    """
    if base is None:
        path: Sequence[Descriptor] = ()
        manifest, config = _empty_manifest(), _empty_config(created, host_platform())
    else:
        path, manifest, config = base.path, base.manifest, base.config
    changes: dict[str, object] = {}
    if layer is not None:
        diff_ids = [*config.rootfs.diff_ids, layer.diff_id]
        changes["rootfs"] = config.rootfs.model_copy(update={"diff_ids": diff_ids})
        manifest = manifest.model_copy(update={"layers": [*manifest.layers, layer.descriptor]})
    if created is not None:
        changes["created"] = check_timestamp(created)
    if history is not None:
        entry = history.model_copy(update={"empty_layer": None if layer is not None else True})
        changes["history"] = _extended_history(config, entry)
    return write_image(layout, path, manifest, config.model_copy(update=changes))


def _extended_history(config: ImageConfig, entry: HistoryEntry) -> list[HistoryEntry] | None:
    """Return the history of ``config`` with one more entry; unchanged if there are layers and no history.

    Entries must match the layers (image-spec config.md): given one entry for several layers, tools assign it to the
    lowest layer, or refuse the image.
    """
    if not config.history and config.rootfs.diff_ids:
        return config.history
    return [*(config.history or []), completed(entry, config)]


def completed(entry: HistoryEntry, config: ImageConfig) -> HistoryEntry:
    """Add the image's author to ``entry`` if it has none, and a time: the image's, else the epoch.

    The image-spec calls the time optional, but ``umoci stat`` up to 0.4.7 panics on an entry without one.
    Empty values become absent (``--history.author=``), as in umoci.

    Raises:
        RequestError: the entry's own time is not RFC 3339. The config's is not checked.
    """
    if entry.created:
        check_timestamp(entry.created)
    author = entry.author if entry.author is not None else config.author
    return entry.model_copy(
        update={
            "created": entry.created or config.created or _EPOCH,
            "author": author or None,
            "comment": entry.comment or None,
            "created_by": entry.created_by or None,
        }
    )


def write_image(layout: Layout, path: Sequence[Descriptor], manifest: Manifest, config: ImageConfig) -> Resolved:
    """Store ``config``, its ``manifest``, and the nested indexes on ``path`` that lead to it.

    ``path`` is empty for a new image. A tag must name ``Resolved.path[0]``.

    Raises:
        MalformedDocument: an index on the path does not name the next descriptor.
    """
    written = rewritten(layout.put_document(config, MEDIA_TYPE_CONFIG), manifest.config)
    manifest = manifest.model_copy(update={"config": written})
    new = layout.put_document(manifest, MEDIA_TYPE_MANIFEST)
    walk = [rewritten(new, path[-1], config) if path else new]
    for old_parent, old_child in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        walk.insert(0, _replace_child(layout, old_parent, old_child, walk[0]))
    return Resolved(tuple(walk), manifest, config)


def with_manifest(layout: Layout, image: Resolved, manifest: Manifest) -> Resolved:
    """Return ``image`` with another manifest for the same config blob; no index is written."""
    new = rewritten(layout.put_document(manifest, MEDIA_TYPE_MANIFEST), image.descriptor)
    return Resolved((*image.path[:-1], new), manifest, image.config)


def _replace_child(layout: Layout, parent: Descriptor, old: Descriptor, new: Descriptor) -> Descriptor:
    index = read_index(layout, parent)
    # Several children may share a digest (one image for two platforms); then only the equal descriptor changes.
    same = [old] if old in index.manifests else [child for child in index.manifests if child.digest == old.digest]
    if not same:
        raise MalformedDocument(f"index does not name {old.digest}", where=parent.digest)
    manifests = [new if child in same else child for child in index.manifests]
    written = layout.put_document(index.model_copy(update={"manifests": manifests}), MEDIA_TYPE_INDEX)
    return rewritten(written, parent)


def rewritten(new: Descriptor, old: Descriptor, config: ImageConfig | None = None) -> Descriptor:
    """Point ``old`` to the new blob, without embedded data and urls, which belong to the old blob."""
    update: dict[str, object] = {"digest": new.digest, "size": new.size, "data": None, "urls": None}
    if config is not None and old.platform is not None:
        named = {"os": config.os, "architecture": config.architecture, "variant": config.variant}
        update["platform"] = old.platform.model_copy(update={k: v for k, v in named.items() if v is not None})
    return old.model_copy(update=update)


# --- changes of the config -------------------------------------------------------------------------

_CLEARABLE: Final = {
    "config.labels": "labels",
    "config.exposedports": "exposed_ports",
    "config.env": "env",
    "config.entrypoint": "entrypoint",
    "config.cmd": "cmd",
    "config.volume": "volumes",
}
"""Keys of ``--clear`` and the config fields that they empty; ``manifest.annotations`` is a key, too."""
_CLEAR_ANNOTATIONS = "manifest.annotations"


@dataclass(frozen=True)
class ConfigChanges:
    """Changes, named like umoci's flags. None or empty: unchanged.

    For one name, the last of several values counts. ``clear`` is applied first, so that a list can be replaced.
    """

    user: str | None = None
    exposed_ports: Sequence[str] = ()
    """Added; ``80/tcp``."""
    env: Sequence[str] = ()
    """``NAME=VALUE``; an existing name keeps its position."""
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
    """Apply ``changes`` and append ``history``, marked as an entry without a layer (None: no entry).

    Raises:
        RequestError: an invalid value; nothing has been written then.
    """
    config = _changed_config(image.config, changes)
    manifest = _changed_manifest(image.manifest, changes)
    if history is not None:
        entry = history.model_copy(update={"empty_layer": True})
        config = config.model_copy(update={"history": _extended_history(config, entry)})
    return write_image(layout, image.path, manifest, config)


def _changed_config(config: ImageConfig, changes: ConfigChanges) -> ImageConfig:
    update: dict[str, Any] = {"config": _changed_section(config.config or ConfigSection(), changes)}
    for name in ("author", "os", "architecture", "variant"):
        value = getattr(changes, name)
        if value is not None:
            # An empty author or variant is omitted; os and architecture are required (config.md): empty, as in umoci.
            update[name] = value if name in ("os", "architecture") else value or None
    if changes.created is not None:
        update["created"] = check_timestamp(changes.created)
    return config.model_copy(update=update)


def _changed_section(section: ConfigSection, changes: ConfigChanges) -> ConfigSection:
    update: dict[str, Any] = dict.fromkeys(_cleared(changes.clear))
    found = section.model_copy(update=update)
    for name in ("user", "working_dir", "stop_signal"):
        if getattr(changes, name) is not None:
            update[name] = getattr(changes, name) or None
    for name in ("entrypoint", "cmd"):
        if getattr(changes, name) is not None:
            update[name] = list(getattr(changes, name)) or None
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
        if key != _CLEAR_ANNOTATIONS and key not in _CLEARABLE:
            known = ", ".join(sorted([*_CLEARABLE, _CLEAR_ANNOTATIONS]))
            raise RequestError(f"unknown key to clear: {key[:100]!r}", hint=f"one of {known}")
        if key in _CLEARABLE:
            fields.append(_CLEARABLE[key])
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
    """Encode a set as Go does: an object of empty objects."""
    for value in values:
        if not value:
            raise RequestError(f"{what} is empty")
    return {value: {} for value in values}


def _merged_env(old: Sequence[str], new: Mapping[str, str]) -> list[str]:
    found = {entry.partition("=")[0]: entry for entry in old}
    return list((found | {name: f"{name}={value}" for name, value in new.items()}).values())
