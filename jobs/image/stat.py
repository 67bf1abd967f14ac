"""Describe an image or an artifact for ``stat``: umoci 0.6's JSON, and its text.

Texts of an image are untrusted: text that could move the cursor or look like another field is quoted.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.image.documents import AnyManifest, ConfigSection, HistoryEntry, ImageConfig
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import Descriptor, Document, Layout, Platform, encode_document, parse_document

_DATA_SHOWN = 256
"""Bytes of embedded data that the text shows."""


def stat_json(layout: Layout, image: Resolved) -> dict[str, Any]:
    """Return ``manifest`` and ``config`` with descriptor and blob each, and ``history``, with umoci's names.

    The blobs are the stored documents, unknown fields included.

    Raises:
        MalformedDocument: the history has more layers than the image.
    """
    return {
        "manifest": _described(layout, image.descriptor),
        "config": _described(layout, image.manifest.config),
        "history": [
            {"layer": None if layer is None else _plain(layer), "diff_id": diff_id, **_plain(entry)}
            for entry, layer, diff_id in _steps(image)
        ],
    }


def stat_text(image: Resolved) -> str:
    """Return the text form, in three parts. Raises as :func:`stat_json`."""
    lines = ["== MANIFEST ==", *_manifest(image.manifest), *_descriptor(image.descriptor)]
    lines += ["", "== CONFIG ==", *_config(image.config), *_descriptor(image.manifest.config)]
    lines += ["", "== HISTORY ==", *_table(_history_rows(image))]
    return "\n".join(lines) + "\n"


def artifact_json(layout: Layout, descriptor: Descriptor, manifest: AnyManifest) -> dict[str, Any]:
    """Describe an artifact as umoci does: no history, and a config's blob only if it is JSON.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: the store is incomplete or corrupt.
    """
    config = {"descriptor": _plain(manifest.config)}
    if manifest.config.size <= limits().document_bytes:
        with suppress(MalformedDocument):
            raw = layout.read(manifest.config)
            parse_document(Document, raw, manifest.config.digest)
            config["blob"] = json.loads(raw)
    return {
        "manifest": _described(layout, descriptor),
        "config": config,
    }


def _described(layout: Layout, descriptor: Descriptor) -> dict[str, Any]:
    return {"descriptor": _plain(descriptor), "blob": json.loads(layout.read(descriptor))}


def artifact_text(descriptor: Descriptor, manifest: AnyManifest) -> str:
    """Return the text form for an artifact: the manifest, and the config's descriptor."""
    lines = ["== MANIFEST ==", *_manifest(manifest), *_descriptor(descriptor)]
    lines += ["", "== CONFIG ==", *_descriptor(manifest.config)]
    return "\n".join(lines) + "\n"


def human_size(count: float) -> str:
    """Format bytes in decimal units with four digits: ``143B``, ``49.25MB``."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.4g}{units[0]}"


# --- history ---------------------------------------------------------------------------------------


def _steps(image: Resolved) -> Iterator[tuple[HistoryEntry, Descriptor | None, str]]:
    """Yield each history entry with its layer and diff_id; None and "" for an empty one."""
    layers = iter(image.layers)
    for entry in image.config.history or []:
        if entry.empty_layer:
            yield entry, None, ""
            continue
        try:
            layer, diff_id = next(layers)
        except StopIteration:
            raise MalformedDocument(
                f"history of the config has more layers than the image, which has {len(image.layers)}",
                where=image.manifest.config.digest,
            ) from None
        yield entry, layer, diff_id


def _history_rows(image: Resolved) -> Iterator[tuple[str, ...]]:
    yield ("LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT")
    for entry, layer, _ in _steps(image):
        yield (
            layer.digest if layer else "<none>",
            _quoted(entry.created or ""),
            _quoted(entry.created_by or ""),
            human_size(layer.size) if layer else "<none>",
            _quoted(entry.comment or ""),
        )


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Align columns like Go's tabwriter: one blank between, at least four wide."""
    cells = list(rows)
    widths = [max(4, max(map(len, column)) + 1) for column in zip(*cells, strict=True)]
    return [
        "".join(text.ljust(width) for text, width in zip(row, widths[:-1], strict=False)) + row[-1] for row in cells
    ]


# --- documents -------------------------------------------------------------------------------------


def _manifest(manifest: AnyManifest) -> Iterator[str]:
    yield _field("Schema Version", str(manifest.schema_version))
    yield _field("Media Type", manifest.media_type or "")
    if manifest.artifact_type:
        yield _field("Artifact Type", manifest.artifact_type)
    yield "Config:"
    yield from _indented(_descriptor(manifest.config))
    if manifest.layers:
        yield "Layers:"
    for layer in manifest.layers:
        yield from _indented(_descriptor(layer))
    if manifest.subject:
        yield "Subject:"
        yield from _indented(_descriptor(manifest.subject))
    yield from _mapping("Annotations", manifest.annotations)


def _descriptor(descriptor: Descriptor) -> Iterator[str]:
    yield "Descriptor:"
    yield from _indented(_descriptor_fields(descriptor))


def _descriptor_fields(descriptor: Descriptor) -> Iterator[str]:
    yield _field("Media Type", descriptor.media_type)
    if descriptor.artifact_type:
        yield _field("Artifact Type", descriptor.artifact_type)
    yield _field("Digest", descriptor.digest)
    yield _field("Size", human_size(descriptor.size))
    if descriptor.platform:
        yield from _platform(descriptor.platform)
    yield from _listing("URLs", descriptor.urls)
    yield from _mapping("Annotations", descriptor.annotations)
    if descriptor.data:
        yield from _data(descriptor.data)


def _config(config: ImageConfig) -> Iterator[str]:
    if config.created is not None:
        yield _field("Created", config.created)
    yield _field("Author", config.author or "")
    yield from _platform(config)
    yield "Image Config:"
    yield from _indented(_section(config.config or ConfigSection()))


def _section(section: ConfigSection) -> Iterator[str]:
    escaped = " (escaped)" if (section.__pydantic_extra__ or {}).get("ArgsEscaped") is True else ""
    yield _field("User", section.user or "")
    yield from _listing("Entrypoint" + escaped, section.entrypoint)
    yield from _listing("Command" + escaped, section.cmd) if section.cmd else [f"Command{escaped}: (empty)"]
    if section.working_dir:
        yield _field("Working Directory", section.working_dir)
    yield from _listing("Environment", section.env)
    if section.stop_signal:
        yield _field("Stop Signal", section.stop_signal)
    if section.exposed_ports:
        yield _field("Exposed Ports", *sorted(section.exposed_ports))
    if section.volumes:
        yield _field("Volumes", *sorted(section.volumes))
    yield from _mapping("Labels", section.labels)


def _platform(platform: Platform | ImageConfig) -> Iterator[str]:
    extra = platform.__pydantic_extra__ or {}
    yield "Platform:"
    yield "\t" + _field("OS", platform.os or "")
    if isinstance(extra.get("os.version"), str):
        yield "\t" + _field("OS Version", extra["os.version"])
    if isinstance(extra.get("os.features"), list):
        yield "\t" + _field("OS Features", *map(str, extra["os.features"]))
    variant = f" ({_quoted(platform.variant)})" if platform.variant else ""
    yield f"\tArchitecture: {_precise(platform.architecture or '')}{variant}"


def _data(text: str) -> Iterator[str]:
    """Format embedded data like xxd."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        yield _field("Data", "not base64")
        return
    yield f"Data: ({len(data)} bytes)"
    for at in range(0, min(len(data), _DATA_SHOWN), 16):
        line = data[at : min(at + 16, _DATA_SHOWN)]
        digits = " ".join(line[pair : pair + 2].hex().ljust(4) for pair in range(0, 16, 2))
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        yield f"\t{at:04x}: {digits}  {shown}"
    if len(data) > _DATA_SHOWN:
        yield f"\t....  (extra {len(data) - _DATA_SHOWN} bytes omitted)"


# --- lines -----------------------------------------------------------------------------------------


def _field(name: str, *values: str) -> str:
    return f"{name}: {', '.join(_string(value) if ',' in value else _precise(value) for value in values)}"


def _listing(name: str, values: Sequence[str] | None) -> Iterator[str]:
    if values:
        yield f"{name}:"
        yield from _indented(map(_precise, values))


def _mapping(name: str, values: dict[str, str] | None) -> Iterator[str]:
    if values:
        yield f"{name}:"
        for key in sorted(values):
            yield "\t" + _field(_precise(key), values[key])


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return ("\t" + line for line in lines)


def _precise(text: str) -> str:
    """Quote as :func:`_quoted`, and also if the text is empty or has white space."""
    return _string(text) if not text or any(c.isspace() for c in text) else _quoted(text)


def _quoted(text: str) -> str:
    """Quote ``text`` if it has unprintable characters, quotes or backslashes."""
    quoted = _string(text)
    return text if quoted == f'"{text}"' else quoted


def _string(text: str) -> str:
    """Return a double-quoted string in Go's notation, of printable characters only."""
    return '"' + "".join(map(_escaped, text)) + '"'


_SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _plain(document: Descriptor | HistoryEntry) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(encode_document(document))
    return plain
