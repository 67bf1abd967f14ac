"""Check a layout or an image and report every problem (umoci #361).

Problems are collected as findings (:mod:`layerfarm.jobs.image.report`), not raised.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from layerfarm.jobs.compress import compression_of
from layerfarm.jobs.compress.codecs import is_docker
from layerfarm.jobs.errors import LayerfarmError, UnsupportedMediaType, display
from layerfarm.jobs.image.check_layer import check_layer
from layerfarm.jobs.image.documents import ImageConfig, Manifest, is_timestamp
from layerfarm.jobs.image.layers import Advanced, of_toc, unheard
from layerfarm.jobs.image.report import Report
from layerfarm.jobs.image.resolve import is_attestation, is_marked_attestation, is_of_an_image
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import (
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    REF_NAME,
    Descriptor,
    Document,
    Index,
    Layout,
    check_digest,
    check_refname,
    parse_document,
)
from layerfarm.jobs.store.blob import embedded_data
from layerfarm.jobs.store.document import DocumentT
from layerfarm.jobs.store.layout_directory import private_faults
from layerfarm.jobs.store.reachability import MANIFEST_TYPES, children

MOST_LAYERS = 127
"""The most layers that Docker's overlay driver mounts."""
_INDEX = "index.json"


def validate_layout(path: Path, advanced: Advanced = unheard) -> Report:
    """Check a whole layout: its files, also private ones, every tag, every blob, unreachable ones too."""
    report = Report()
    opened = _open(path, report)
    if opened is not None:
        layout, index = opened
        for tag, error in layout.faults():
            report.error("document", _INDEX if tag is None else tag[:200], error)
        _check_tags(index, report)
        walker = _Walker(layout, report, advanced)
        for descriptor in index.manifests:
            walker.follow(descriptor, _INDEX, 0)
        walker.check_unreachable()
        _check_private(layout, report)
    return report


def validate_image(path: Path, tag: str, advanced: Advanced = unheard) -> Report:
    """Check everything that a tag leads to, every platform."""
    report = Report()
    opened = _open(path, report)
    if opened is not None:
        layout, index = opened
        named = [entry for entry in index.manifests if _tag(entry) == tag]
        faults = [error for name, error in layout.faults() if name == tag]
        for error in faults:
            report.error("document", tag, error)
        if not named and not faults:
            report.error("tag-missing", tag, "no manifest has this tag")
        if len(named) > 1:
            report.error("tag-ambiguous", tag, f"{len(named)} manifests have this tag")
        walker = _Walker(layout, report, advanced)
        for descriptor in named:
            walker.follow(descriptor, _INDEX, 0)
    return report


def _open(path: Path, report: Report) -> tuple[Layout, Index] | None:
    code, where = "layout", "oci-layout"
    try:
        layout = Layout.open(path)
        code, where = "document", _INDEX
        return layout, layout.index()
    except (LayerfarmError, OSError) as error:
        report.error(code, where, error)
        return None


def _check_private(layout: Layout, report: Report) -> None:
    """Report links and special files in the private directory: other users can create them in a shared layout.

    Commands fail where one replaces the directory, a subdirectory or the lock, and ignore others.
    """
    for path, message in private_faults(layout.path):
        where = path.relative_to(layout.path)
        (report.error if len(where.parts) <= 2 else report.warning)("private", display(os.fsencode(where)), message)


def _check_tags(index: Index, report: Report) -> None:
    seen: set[str] = set()
    for tag in map(_tag, index.manifests):
        if tag is None:
            continue
        try:
            check_refname(tag)
        except LayerfarmError as error:
            report.error("tag", tag[:200], error)
        if tag in seen:
            report.error("tag-ambiguous", tag[:200], "several manifests have this tag")
        seen.add(tag)


def _tag(descriptor: Descriptor) -> str | None:
    return (descriptor.annotations or {}).get(REF_NAME)


class _Walker:
    """Follows descriptors, and reads every blob once."""

    def __init__(self, layout: Layout, report: Report, advanced: Advanced) -> None:
        self._layout = layout
        self._report = report
        self._advanced = advanced
        self._seen: set[tuple[str, str, int]] = set()
        """Digest, media type and size: each description of a blob must be right."""
        self._named: set[str] = set()
        self._read: set[str] = set()
        self._diff_ids: dict[tuple[str, str, frozenset[tuple[str, str]]], str | None] = {}

    def follow(self, descriptor: Descriptor, where: str, depth: int) -> None:
        """Check an entry of an index: a manifest, a nested index, or a blob of unknown type."""
        if not self._first(descriptor):
            return
        if depth > (most := limits().index_depth):
            self._report.error("nesting", descriptor.digest, f"indexes are nested deeper than {most}")
            return
        if descriptor.media_type not in MANIFEST_TYPES:
            self._blob(descriptor, where)
            return
        raw = self._document(descriptor, where)
        if raw is None:
            return
        if descriptor.media_type == MEDIA_TYPE_INDEX:
            self._index(raw, descriptor, depth)
        else:
            self._manifest(raw, descriptor, depth)

    def check_unreachable(self) -> None:
        """Read unreachable blobs: they may be damaged, too, and be tagged later."""
        for algorithm in sorted((self._layout.path / "blobs").iterdir()):
            if not algorithm.is_dir():
                self._report.warning("stray", f"blobs/{algorithm.name}", "not a directory of blobs")
                continue
            for path in sorted(algorithm.iterdir()):
                if f"{algorithm.name}:{path.name}" not in self._named:
                    self._unreachable(path, f"{algorithm.name}:{path.name}")

    # --- documents -----------------------------------------------------------------------------------

    def _index(self, raw: bytes, descriptor: Descriptor, depth: int) -> None:
        index = self._parse(Index, raw, descriptor)
        if index is None:
            return
        if not index.manifests:
            self._report.warning("empty-index", descriptor.digest, "index names no manifest")
        absent = {child.digest for child in index.manifests if self._layout.lacks(child)}
        # Absent children are allowed (image-layout.md "Blobs"), but not all of them.
        allowed = any(child.digest not in absent for child in index.manifests)
        for child in index.manifests:
            if not (allowed and child.digest in absent):
                self.follow(child, descriptor.digest, depth + 1)
            elif self._first(child):
                self._report.warning(
                    "blob-missing", child.digest, f"named by {descriptor.digest}, and the store does not hold it"
                )

    def _manifest(self, raw: bytes, descriptor: Descriptor, depth: int) -> None:
        """Check a manifest; for artifacts and foreign formats only the blobs."""
        parsed = self._parse(Document, raw, descriptor)
        if parsed is None:
            return
        document = parsed.model_extra or {}
        if descriptor.media_type != MEDIA_TYPE_MANIFEST:
            self._report.warning(
                "media-type", descriptor.digest, f"layerfarm does not read {descriptor.media_type}; only blobs checked"
            )
            self._children(document, descriptor, depth)
            return
        if is_marked_attestation(descriptor) or not is_of_an_image(document):
            self._children(document, descriptor, depth)
            return
        if "schemaVersion" not in document:
            self._report.error("document", descriptor.digest, "manifest has no schemaVersion")
        manifest = self._parse(Manifest, raw, descriptor)
        if manifest is None:
            return
        config = self._config(manifest, descriptor)
        if config is not None and is_attestation(config):
            self._children(document, descriptor, depth)
            return
        self._image(manifest, config, descriptor)

    def _image(self, manifest: Manifest, config: ImageConfig | None, descriptor: Descriptor) -> None:
        if len(manifest.layers) > MOST_LAYERS:
            self._report.warning(
                "layers", descriptor.digest, f"image has {len(manifest.layers)} layers, Docker mounts {MOST_LAYERS}"
            )
        diff_ids: list[str | None] = [None] * len(manifest.layers)
        if config is not None:
            self._check_config(config, manifest, descriptor)
            diff_ids[: len(config.rootfs.diff_ids)] = config.rootfs.diff_ids[: len(manifest.layers)]
        for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
            self._layer(layer, diff_id, descriptor.digest)

    def _config(self, manifest: Manifest, descriptor: Descriptor) -> ImageConfig | None:
        raw = self._document(manifest.config, descriptor.digest)
        self._first(manifest.config)
        return None if raw is None else self._parse(ImageConfig, raw, manifest.config)

    def _check_config(self, config: ImageConfig, manifest: Manifest, descriptor: Descriptor) -> None:
        where = manifest.config.digest
        report = self._report
        layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
        if layers != diff_ids:
            report.error(
                "diff-ids", descriptor.digest, f"manifest has {layers} layers but its config {diff_ids} diff_ids"
            )
        for name in ("architecture", "os"):
            if not getattr(config, name):
                report.error("document", where, f"config has no {name}")
        filled = sum(not entry.empty_layer for entry in config.history or [])
        if config.history and filled != layers:
            report.warning("history", where, f"history has {filled} layers, the image {layers}")
        for moment in (config.created, *(entry.created for entry in config.history or [])):
            if moment is not None and not is_timestamp(moment):
                report.error("document", where, f"not an RFC 3339 time, Go programs cannot read it: {moment[:40]!r}")
        platform = descriptor.platform
        if (
            platform is not None
            and (platform.os or platform.architecture)
            and (platform.os, platform.architecture) != (config.os, config.architecture)
        ):
            report.warning(
                "platform",
                descriptor.digest,
                f"index says {platform.os}/{platform.architecture}, config {config.os}/{config.architecture}",
            )

    def _children(self, document: dict[str, Any], descriptor: Descriptor, depth: int) -> None:
        try:
            found = list(children(document, descriptor.digest, self._layout.has))
        except LayerfarmError as error:
            self._report.error("document", descriptor.digest, error)
            return
        for child, _ in found:
            # The subject is a manifest, perhaps one that a tag leads to as well: its layers are checked here or there.
            self.follow(child, descriptor.digest, depth + 1)

    def _document(self, descriptor: Descriptor, where: str) -> bytes | None:
        try:
            raw = self._layout.read(descriptor)
        except (LayerfarmError, OSError) as error:
            self._unreadable(descriptor, where, error)
            return None
        self._count(descriptor)
        return raw

    def _parse(self, model: type[DocumentT], raw: bytes, descriptor: Descriptor) -> DocumentT | None:
        try:
            return parse_document(model, raw, descriptor.digest)
        except LayerfarmError as error:
            self._report.error("document", descriptor.digest, error)
            return None

    # --- blobs ---------------------------------------------------------------------------------------

    def _layer(self, layer: Descriptor, diff_id: str | None, where: str) -> None:
        key = (layer.digest, layer.media_type, frozenset(of_toc(layer).items()))
        if self._first(layer) or key not in self._diff_ids:
            self._diff_ids[key] = self._layer_stream(layer, where)
        found = self._diff_ids[key]
        if found is None or diff_id is None or found == diff_id:
            return
        if diff_id.partition(":")[0] == found.partition(":")[0]:
            self._report.error("diff-id", layer.digest, f"layer unpacks to {found}, its diff_id is {diff_id}")
        else:
            self._report.warning("diff-id", layer.digest, f"diff_id is not a sha256 and was not compared: {diff_id}")

    def _layer_stream(self, layer: Descriptor, where: str) -> str | None:
        """Read a whole layer; return the sha256 digest of its tar stream, or None if it cannot be read."""
        try:
            compression_of(layer.media_type)
        except UnsupportedMediaType as error:
            self._report.error("media-type", layer.digest, error)
            self._blob(layer, where)
            return None
        try:
            checked = check_layer(self._layout, layer, self._advanced)
        except (LayerfarmError, OSError) as error:
            self._unreadable(layer, where, error)
            return None
        self._count(layer)
        if checked.other_compression:
            self._report.warning("compression", layer.digest, checked.other_compression)
        if is_docker(layer.media_type):
            self._report.warning("media-type", layer.digest, f"one of Docker's in an OCI manifest: {layer.media_type}")
        for name, message in checked.faults:
            self._report.error("tar", layer.digest, f"{message}: {name}")
        for name, message in checked.toc_faults:
            self._report.error("toc", layer.digest, f"{name}: {message}")
        for name, message in checked.warnings:
            self._report.warning("hard-link", layer.digest, f"{message}: {name}")
        return checked.diff_id

    def _blob(self, descriptor: Descriptor, where: str) -> None:
        try:
            self._read_blob(descriptor)
        except (LayerfarmError, OSError) as error:
            self._unreadable(descriptor, where, error)
        else:
            self._count(descriptor)

    def _read_blob(self, descriptor: Descriptor) -> None:
        with self._layout.open_blob(descriptor) as stream:
            while piece := stream.read(1 << 20):
                self._advanced(len(piece))

    def _unreadable(self, descriptor: Descriptor, where: str, error: Exception) -> None:
        if _exists(self._layout, descriptor):
            self._report.error("blob", descriptor.digest, error)
        elif descriptor.urls:
            self._report.warning("blob-missing", descriptor.digest, f"external, at {descriptor.urls[0][:200]}")
        else:
            self._report.error("blob-missing", descriptor.digest, f"named by {where}, and the store does not hold it")

    def _first(self, descriptor: Descriptor) -> bool:
        key = (descriptor.digest, descriptor.media_type, descriptor.size)
        if key in self._seen:
            return False
        self._seen.add(key)
        self._named.add(descriptor.digest)
        try:
            embedded_data(descriptor)
        except LayerfarmError as error:
            self._report.error("embedded-data", descriptor.digest, error)
        return True

    def _count(self, descriptor: Descriptor) -> None:
        if descriptor.digest not in self._read:
            self._read.add(descriptor.digest)
            self._report.reachable += 1
            self._report.reachable_bytes += descriptor.size

    def _unreachable(self, path: Path, digest: str) -> None:
        try:
            check_digest(digest)
            found = path.stat()
        except ValueError:
            self._report.warning("stray", f"blobs/{path.parent.name}/{path.name}", "not the name of a blob")
            return
        except OSError as error:
            self._report.error("blob", digest, error.strerror)
            return
        if not stat.S_ISREG(found.st_mode):
            self._report.error("blob", digest, "blob is not a regular file")
            return
        self._report.unreachable += 1
        self._report.unreachable_bytes += found.st_size
        self._report.warning("unreachable", digest, f"blob of {found.st_size} bytes is not referenced")
        try:
            self._read_blob(Descriptor(mediaType="application/octet-stream", digest=digest, size=found.st_size))
        except (LayerfarmError, OSError) as error:
            self._report.error("blob", digest, error)


def _exists(layout: Layout, descriptor: Descriptor) -> bool:
    try:
        return os.path.lexists(layout.blob_path(descriptor.digest))
    except LayerfarmError:
        return False
