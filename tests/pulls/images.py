"""Images for the clients: two tags of a Debian that differ in one package, and a small one that is tampered with."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from layerfarm.jobs.image import PackedLayer, append_layer, resolve
from layerfarm.jobs.store import Layout
from tests.debian import ALONE, tidy
from tests.trees import directory, file, tree
from tests.unit.compress import chunked_reader, stargz_reader
from tests.unit.compress.chunked_reader import Blob

_UPGRADED: Final = ("perl-base", "liblzma5", "libc-bin", "tzdata")
"""Packages of a minbase that Debian upgrades; the first one with a newer version is taken."""
SETUID: Final = b"bin/tool"
"""File of the small image that a false table of contents gives the setuid bit."""


class Format(NamedTuple):
    """A way to write the layers of an image."""

    name: str
    compress: str
    rechunk: bool = False

    @property
    def has_table(self) -> bool:
        """True: its small image has one layer, with a table of contents."""
        return self.compress in ("zstd:chunked", "estargz") and not self.rechunk


FORMATS: Final = {
    each.name: each
    for each in (
        Format("gzip", "gzip"),
        Format("zstd", "zstd"),
        Format("zstd:chunked", "zstd:chunked"),
        Format("zstd:chunked, rechunked", "zstd:chunked", rechunk=True),
        Format("eStargz", "estargz"),
    )
}


def two_tags(slim: Path, place: Path) -> tuple[tuple[Path, Path], str]:
    """Return two trees of a Debian, the second one with one package upgraded, and the package with both versions."""
    trees = (place / "1", place / "2")
    subprocess.run(["cp", "-a", "--reflink=auto", slim, trees[0]], check=True)
    shutil.rmtree(trees[0] / "dev")  # an image has no devices
    (trees[0] / "dev").mkdir()
    subprocess.run(["cp", "-a", "--reflink=auto", trees[0], trees[1]], check=True)
    packages = place / "packages"
    packages.mkdir()
    for name in _UPGRADED:
        old = _text("chroot", trees[0], "dpkg-query", "--show", "--showformat=${Version}", name)
        subprocess.run(["apt-get", "-qq", "download", name], cwd=packages, stderr=subprocess.DEVNULL, check=True)
        (package,) = packages.glob(f"{name}_*.deb")
        new = _text("dpkg-deb", "--field", package, "Version")
        if new != old:
            shutil.copy(package, trees[1] / "upgrade.deb")
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
            install = [*ALONE, "chroot", trees[1], "dpkg", "--install", "/upgrade.deb"]
            subprocess.run(install, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
            (trees[1] / "upgrade.deb").unlink()
            tidy(trees[1])
            return trees, f"{name} {old} to {new}"
    raise AssertionError(f"no newer version of any of {_UPGRADED}: apt-get update")


def build(layout: Path, rootfs: Path, tag: str, kind: Format) -> None:
    """Build an image of a tree."""
    _layerfarm("build", "--rootfs", rootfs, "--image", f"{layout}:{tag}", f"--compress={kind.compress}")
    if kind.rechunk:
        image = f"{layout}:{tag}"
        _layerfarm("rechunk", "--image", image, "--target", image, f"--compress={kind.compress}")


def small(place: Path) -> Path:
    """Create the tree of the small image: the middle of its blob is in the content of ``large``."""
    rng = random.Random(3)
    return tree(
        place,
        {
            b".": directory(),
            b"bin": directory(),
            SETUID: file(b"#!/bin/sh\n", mode=0o755),
            b"large": file(rng.randbytes(400_000)),
        },
    )


def damage(blob: Path) -> None:
    """Change a byte in the middle of a blob."""
    with blob.open("r+b") as stream:
        stream.seek(blob.stat().st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def add_lie(layout: Layout, tag: str, lie: str) -> None:
    """Tag the small image as ``lie``, with a layer whose table of contents gives a file the setuid bit."""
    (layer,) = resolve(layout, tag).manifest.layers
    blob = Blob(layout.blob_path(layer.digest).read_bytes(), layer.annotations or {}, [])
    if stargz_reader.DIGEST in blob.annotations:
        false = stargz_reader.with_toc(blob.data[: stargz_reader.toc_place(blob)], _changed(stargz_reader.toc_of(blob)))
        tar = stargz_reader.unpack(false.data)
    else:
        toc = chunked_reader.toc_of(blob) | {"tarSplitDigest": "DIGEST"}
        lines = (json.dumps(line).encode() + b"\n" for line in chunked_reader.tar_split_of(blob))
        false = chunked_reader.with_toc(blob, _changed(toc), b"".join(lines))
        tar = chunked_reader.assembled(blob)
    put = layout.put(false.data, layer.media_type)
    packed = PackedLayer(
        descriptor=put.model_copy(update={"annotations": false.annotations}),
        diff_id=f"sha256:{sha256(tar).hexdigest()}",
        uncompressed_size=len(tar),
    )
    layout.tag(lie, append_layer(layout, None, packed, None).path[0])


def _changed(toc: dict[str, Any]) -> bytes:
    (entry,) = (each for each in toc["entries"] if each["name"] == SETUID.decode())
    entry["mode"] |= 0o4000
    return json.dumps(toc).encode()


def _layerfarm(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "layerfarm.worker.cli", *map(str, arguments), "--progress=none"]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def _text(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
