"""Images for tests: made from plain tars, so that they do not depend on the room they test."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

from layerfarm.jobs.image import Resolved, write_image
from layerfarm.jobs.image.documents import ImageConfig, Manifest
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST, Layout

RFC3339 = (
    *("2020-01-01T00:00:00Z", "2020-01-01T00:00:00+02:00", "2020-01-01T00:00:00.123456789-23:59"),
    *("0000-02-29T23:59:59Z", "9999-12-31T23:59:59.5Z", "2000-02-29T00:00:00-00:00", "2020-01-01T00:00:00.1234567890Z"),
)
"""Times as RFC 3339 5.6 writes them."""
NOT_RFC3339 = (
    *("", "yesterday", "2020-01-01", "2020-01-01T00:00:00", "2020-01-01T00:00Z", "2020-01-01 00:00:00Z"),
    *("20240101T120000Z", "2024-W01-1T00:00:00Z", "2024-001T00:00:00Z", "2020-01-01T00:00:00+01"),
    *("2020-01-01T00:00:00+0100", "2020-01-01t00:00:00Z", "2020-01-01T00:00:00z", "2020-01-01T00:00:00.Z"),
    *("2020-13-01T00:00:00Z", "2020-00-01T00:00:00Z", "2020-01-00T00:00:00Z", "2021-02-29T00:00:00Z"),
    *("1900-02-29T00:00:00Z", "2020-01-01T24:00:00Z", "2020-01-01T00:60:00Z", "2016-12-31T23:59:60Z"),
    *(
        "2020-01-01T00:00:00Z ",
        "2020-01-01T00:00:00Z\n",
        "+2020-01-01T00:00:00Z",
        "\uff12\uff10\uff12\uff10-01-01T00:00:00Z",
    ),
    "2020-01-01T00:00:00+01:00:00",
)
"""Times that Go cannot read, though many of them are ISO 8601 and Python reads them."""
LAX = ("2020-01-01T00:00:00+25:00", "2020-01-01T00:00:00+01:61", "2020-01-01T0:00:00Z", "2020-01-01T00:00:00,5Z")
"""Times that are not RFC 3339, and that Go reads until it is as strict as it means to be (golang/go #54580)."""

Member = tuple[str, bytes | None] | tarfile.TarInfo


def tar(*members: Member) -> bytes:
    """A tar of files ``(name, content)``, directories ``(name, None)`` and whatever a TarInfo says."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.mode = 0o755 if content is None else 0o644
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def image(
    layout: Layout,
    layers: Sequence[bytes] = (),
    *,
    diff_ids: Callable[[list[str]], list[str]] = lambda ids: ids,
    compress: Callable[[bytes], bytes] = lambda raw: gzip.compress(raw, mtime=0),
    config: dict[str, Any] | None = None,
    tag: str = "t",
    **top: Any,
) -> Resolved:
    """An image of these tars, under ``tag``. ``config`` is its section of that name, ``top`` fields beside it."""
    ids = diff_ids([f"sha256:{hashlib.sha256(raw).hexdigest()}" for raw in layers])
    document = ImageConfig.model_validate(
        {"architecture": "amd64", "os": "linux", "config": config or {}}
        | top
        | {"rootfs": {"type": "layers", "diff_ids": ids}}
    )
    blobs = [layout.put(compress(raw), f"{MEDIA_TYPE_LAYER}+gzip") for raw in layers]
    placeholder = layout.put_document(document, MEDIA_TYPE_CONFIG)
    manifest = Manifest(mediaType=MEDIA_TYPE_MANIFEST, config=placeholder, layers=blobs)
    made = write_image(layout, (layout.put_document(manifest, MEDIA_TYPE_MANIFEST),), manifest, document)
    layout.tag(tag, made.path[0])
    return made
