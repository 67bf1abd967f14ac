"""Count what the images of a registry cost, from its answers alone: nothing of the product is used.

The figures are those of docs/catalogs.md: the layers and configurations of the images of a tag, each once, and the
bytes that a host fetches that has the repository's preceding tag. Attestations and referrers do not count.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import urllib.error
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import zstandard

from tests.catalog.registry import Registry
from tests.trees import Node, read_tree

_CONFIGS: Final = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_REFERRERS: Final = re.compile(r"sha256-[0-9a-f]{64}(\..+)?")


@dataclass(frozen=True)
class Platform:
    """One manifest that a host pulls: an image, or an artifact."""

    name: str
    """Operating system and architecture, or the type of the artifact."""
    digest: str
    layers: tuple[str, ...]
    sizes: dict[str, int]
    """Bytes of the layers and the configuration, by digest."""
    foreign: frozenset[str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Tag:
    """The manifests that a tag names."""

    digest: str
    platforms: tuple[Platform, ...]

    @property
    def layers(self) -> int:
        return max(len(each.layers) for each in self.platforms)

    @property
    def bytes(self) -> int:
        return sum(_union(each.sizes for each in self.platforms).values())

    @property
    def created(self) -> str | None:
        return next((each.config["created"] for each in self.platforms if each.config.get("created")), None)

    @property
    def is_image(self) -> bool:
        return any("rootfs" in each.config for each in self.platforms)


class Registered:
    """Reads a registry; asks for the size of a blob once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._sizes: dict[tuple[str, str], int] = {}

    def tags(self, repository: str) -> list[str]:
        """Tags of a repository that name images or artifacts, not the referrers of one."""
        try:
            listed = json.loads(self._get(f"{repository}/tags/list"))["tags"] or []
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return []
        return sorted(tag for tag in listed if not _REFERRERS.fullmatch(tag))

    def read(self, repository: str, tag: str) -> Tag:
        """Read the manifests behind a tag; check that the registry has every blob in its size."""
        raw = self._registry.manifest(f"{repository}:{tag}")
        found = list(self._platforms(repository, raw, _digest(raw)))
        images = [each for each in found if "rootfs" in each.config]
        return Tag(_digest(raw), tuple(images or found))

    def _platforms(self, repository: str, raw: bytes, own: str) -> Iterator[Platform]:
        document = json.loads(raw)
        for entry in document.get("manifests", ()):
            if (entry.get("platform") or {}).get("os") != "unknown":
                child = self._registry.manifest(f"{repository}@{entry['digest']}")
                assert _digest(child) == entry["digest"] and len(child) == entry["size"]
                yield from self._platforms(repository, child, entry["digest"])
        if "manifests" in document:
            return
        blobs = [document["config"], *document["layers"]]
        foreign = frozenset(blob["digest"] for blob in blobs if blob.get("urls"))
        for blob in blobs:
            assert blob["digest"] in foreign or self.size(repository, blob["digest"]) == blob["size"]
        config = document["config"]
        kind = document.get("artifactType") or config["mediaType"]
        content = json.loads(self.blob(repository, config["digest"])) if config["mediaType"] in _CONFIGS else {}
        name = "/".join(filter(None, (content.get(key) for key in ("os", "architecture", "variant"))))
        sizes = {blob["digest"]: blob["size"] for blob in blobs}
        layers = tuple(blob["digest"] for blob in document["layers"])
        yield Platform(name or kind, own, layers, sizes, foreign, content)

    def size(self, repository: str, blob: str) -> int:
        if (repository, blob) not in self._sizes:
            asked = urllib.request.Request(self._address(f"{repository}/blobs/{blob}"), method="HEAD")
            with urllib.request.urlopen(asked, timeout=30) as answer:
                self._sizes[repository, blob] = int(answer.headers["Content-Length"])
        return self._sizes[repository, blob]

    def blob(self, repository: str, blob: str) -> bytes:
        content = self._get(f"{repository}/blobs/{blob}")
        assert _digest(content) == blob
        return content

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._address(path), timeout=30) as answer:
            return bytes(answer.read())

    def _address(self, path: str) -> str:
        return f"http://{self._registry.host}/v2/{path}"

    # --- trees -----------------------------------------------------------------------------------

    def tree(self, repository: str, image: Platform, place: Path, umoci: str) -> dict[bytes, Node]:
        """Unpack an image with umoci, from plain layers: umoci 0.4.7 knows neither zstd nor Docker's types.

        umoci checks each layer's diff_id.
        """
        place.mkdir()
        began = place.stat().st_mtime_ns
        blobs = place / "layout/blobs/sha256"
        blobs.mkdir(parents=True)

        def store(content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
            (blobs / _digest(content)[7:]).write_bytes(content)
            return {"mediaType": media_type, "digest": _digest(content), "size": len(content), **more}

        layers = []
        for layer, diff_id in zip(image.layers, image.config["rootfs"]["diff_ids"] or [], strict=True):
            path = blobs / diff_id[7:]
            with path.open("wb") as out:
                out.writelines(_plain(self.blob(repository, layer)))
            layers.append(
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": diff_id,
                    "size": path.stat().st_size,
                }
            )
        manifest = {
            "schemaVersion": 2,
            "config": store(json.dumps(image.config).encode(), _CONFIGS[0]),
            "layers": layers,
        }
        named = {"annotations": {"org.opencontainers.image.ref.name": "t"}}
        top = store(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json", **named)
        (place / "layout/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
        (place / "layout/oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        command = [umoci, "unpack", "--image", f"{place}/layout:t", str(place / "bundle")]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        # umoci dates directories that no layer has with the time of the unpacking.
        return {
            path: replace(node, mtime=0) if node.type == "dir" and node.mtime >= began else node
            for path, node in read_tree(place / "bundle/rootfs").items()
        }


def _plain(content: bytes) -> Iterator[bytes]:
    """Yield the tar of a layer."""
    if content.startswith(b"\x1f\x8b"):
        while content:
            unpacker = zlib.decompressobj(31)
            yield unpacker.decompress(content, 1 << 24)
            while not unpacker.eof:
                yield unpacker.decompress(unpacker.unconsumed_tail, 1 << 24)
            content = unpacker.unused_data
    elif content.startswith(b"\x28\xb5\x2f\xfd"):
        with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as reader:
            while chunk := reader.read(1 << 24):
                yield chunk
    else:
        yield content


# --- the numbers of a report ----------------------------------------------------------------------


def series(tags: Mapping[str, Tag]) -> list[list[str]]:
    """Return the images ``REPOSITORY:TAG`` of each repository in order of time, or by the numbers in their names."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(tags, key=_by_numbers):
        found[name.rpartition(":")[0]].append(name)
    for names in found.values():
        times = {name: tags[name].created for name in names}
        if all(times.values()):
            names.sort(key=lambda name: datetime.fromisoformat(times[name] or ""))
    return list(found.values())


def _by_numbers(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def pulls(tags: Mapping[str, Tag], order: Iterable[Sequence[str]]) -> dict[str, int | None]:
    """Return, by image, the bytes of its pull after the preceding tag, on average over the platforms of both."""
    found: dict[str, int | None] = {}
    for names in order:
        held: dict[str, Platform] = {}
        for name in names:
            new = {each.name: each for each in tags[name].platforms}
            costs = [
                sum(size for blob, size in each.sizes.items() if blob not in held[platform].sizes)
                for platform, each in new.items()
                if platform in held
            ]
            found[name] = round(sum(costs) / len(costs)) if costs else None
            held = new
    return found


def totals(tags: Mapping[str, Tag], order: Iterable[Sequence[str]]) -> dict[str, int | None]:
    """Return the fields of a report's totals."""
    costs = [cost for cost in pulls(tags, order).values() if cost is not None]
    platforms = [each for tag in tags.values() for each in tag.platforms]
    return {
        "images": len(tags),
        "layers": len({layer for each in platforms for layer in each.layers}),
        "stored": sum(_union(each.sizes for each in platforms).values()),
        "pulled": sum(costs),
        "pulls": len(costs),
        "pulled_in_part": None,
    }


def layers(tags: Mapping[str, Tag]) -> dict[str, tuple[int, int]]:
    """Return, by layer, its bytes and the number of images that have it."""
    sizes = _union(each.sizes for tag in tags.values() for each in tag.platforms)
    holders = _holders(tags)
    return {layer: (sizes[layer], len(names)) for layer, names in holders.items()}


def shared(tags: Mapping[str, Tag]) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return, by the exact set of images that have them, the number of layers and their bytes."""
    found: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes = layers(tags)
    for layer, names in _holders(tags).items():
        found[tuple(sorted(names))].append(sizes[layer][0])
    return {names: (len(each), sum(each)) for names, each in found.items()}


def _holders(tags: Mapping[str, Tag]) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, tag in tags.items():
        for each in tag.platforms:
            for layer in each.layers:
                found[layer].add(name)
    return found


def _union(sizes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return {blob: size for each in sizes for blob, size in each.items()}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
