"""Images and indexes for the tests of transforms."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import TransformRequest, TransformResult
from layerfarm.jobs.image import Resolved, resolve, unpack_rootfs
from layerfarm.jobs.store import MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Index, Layout
from layerfarm.worker.engine import local
from tests.trees import Node, read_tree
from tests.unit.image.images import image


def run(request: TransformRequest) -> TransformResult:
    """Carry a transform out in this process."""
    return local.run(request, Policy(shards=1, threads=1), 1)  # type: ignore[return-value]


def ref(layout: Layout, tag: str) -> ImageRef:
    return ImageRef(store=layout.path, tag=tag)


def platform(made: Resolved) -> dict[str, Any]:
    config = made.config
    return {
        k: v for k, v in (("os", config.os), ("architecture", config.architecture), ("variant", config.variant)) if v
    }


def entry(made: Resolved) -> Descriptor:
    """An image as an entry of an index."""
    return Descriptor.model_validate(
        made.descriptor.model_dump(by_alias=True, exclude_none=True) | {"annotations": None, "platform": platform(made)}
    )


def index(layout: Layout, entries: Iterable[Descriptor], tag: str, **fields: Any) -> Descriptor:
    """An index of these entries, under ``tag``."""
    document = Index.model_validate(
        {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": list(entries)} | fields
    )
    top = layout.put_document(document, MEDIA_TYPE_INDEX)
    layout.tag(tag, top)
    return top


def two_platforms(layout: Layout, layers: Sequence[bytes], tag: str, *more: Descriptor) -> tuple[Resolved, Resolved]:
    """An index of one image for two platforms, which share all layers but the last."""
    first = image(layout, layers, tag="amd", architecture="amd64")
    second = image(layout, layers[:-1], tag="arm", architecture="arm64", variant="v8")
    layout.untag("amd")
    layout.untag("arm")
    index(layout, [entry(first), entry(second), *more], tag, annotations={"of": "index"}, unknown={"kept": 1})
    return first, second


def manifest(layout: Layout, kind: str, content: bytes, subject: Descriptor | None = None, **fields: Any) -> Descriptor:
    """The manifest of an artifact with one blob."""

    def plain(descriptor: Descriptor) -> dict[str, Any]:
        return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}

    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "artifactType": kind,
        "config": plain(layout.put(b"{}", "application/vnd.oci.empty.v1+json")),
        "layers": [plain(layout.put(content, kind))],
    }
    if subject is not None:
        document["subject"] = plain(subject)
    return layout.put(json.dumps(document | fields).encode(), MEDIA_TYPE_MANIFEST)


def attestation(layout: Layout, made: Resolved) -> Descriptor:
    """Entry that BuildKit adds beside an image in its index."""
    statement = json.dumps({"subject": [{"digest": made.descriptor.digest}]}).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "config": _config(layout),
        "layers": [_blob(layout.put(statement, "application/vnd.in-toto+json"))],
    }
    found = layout.put(json.dumps(document).encode(), MEDIA_TYPE_MANIFEST)
    return Descriptor.model_validate(
        found.model_dump(by_alias=True, exclude_none=True)
        | {
            "annotations": {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": made.descriptor.digest,
            },
            "platform": {"os": "unknown", "architecture": "unknown"},
        }
    )


def _config(layout: Layout) -> dict[str, Any]:
    raw = b'{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    return _blob(layout.put(raw, MEDIA_TYPE_CONFIG))


def _blob(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def enter(layout: Layout, descriptor: Descriptor) -> None:
    """An entry of index.json without a tag."""
    layout.update_index(lambda old: old.model_copy(update={"manifests": [*old.manifests, descriptor]}))


def without(path: Path, digest: str) -> None:
    Layout.open(path).blob_path(digest).unlink()


def tree_of(layout: Layout, tag: str, platform: str | None = None) -> dict[bytes, Node]:
    """Tree after unpacking."""
    place = Path(tempfile.mkdtemp(prefix="layerfarm-test-"))
    try:
        unpack_rootfs(layout, place / "rootfs", resolve(layout, tag, platform))
        return read_tree(place / "rootfs")
    finally:
        shutil.rmtree(place)
