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
