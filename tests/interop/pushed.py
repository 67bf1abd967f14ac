"""Two tags of an image whose layers clients can pull in part, in a registry."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.store import Layout
from tests.catalog.registry import Registry
from tests.interop.conftest import no_farm
from tests.trees import Node, directory, file, hardlink, read_tree, symlink, tree

SECOND = 10**9


def contents(changed: bool) -> dict[bytes, Node]:
    """A tree of some files; ``changed``: with another small file, and another byte in the large one."""
    rng = random.Random(5)
    large = bytearray(rng.randbytes(8_000_000) + bytes(10_000) + rng.randbytes(1000))
    spec: dict[bytes, Node] = {b".": directory(), b"d": directory(mode=0o750, uid=1, gid=2)}
    for number in range(60):
        spec[b"d/f%02d" % number] = file(rng.randbytes(rng.randrange(20_000)), uid=number, mtime=number * SECOND)
    spec[b"d/setuid"] = file(b"#!/bin/sh\n", mode=0o4755, xattrs={"user.a": b"1"})
    spec[b"empty"] = file(uid=3)
    spec["café".encode()] = file(b"coffee")
    spec[b"link"] = symlink(b"d/f01")
    spec[b"hard"] = hardlink(b"d/f02")
    if changed:
        spec[b"d/f07"] = file(b"changed", uid=7, mtime=7 * SECOND)
        large[4_000_000] ^= 1
    spec[b"large"] = file(bytes(large))
    return spec


class Pushed(NamedTuple):
    """Two tags of team/app in a registry, the trees that they were made of (read only), and the layout."""

    registry: Registry
    layout: Layout
    trees: tuple[Path, Path]

    def image(self, tag: str) -> Resolved:
        return resolve(self.layout, tag)

    def reference(self, tag: str) -> str:
        return f"{self.registry.host}/team/app:{tag}"


def made(program: Callable[[str], str], place: Path, compress: str, second: dict[bytes, Node]) -> Path:
    """Make two images with layers of a kind, once for many tests; the second one is of the tree ``second``."""
    program("skopeo")
    layout = Layout.create(place / "store").path
    with Registry(place / "registry", program("docker-registry")) as registry:
        for tag, spec in (("1", contents(False)), ("2", second)):
            rootfs = tree(place / tag, spec)
            command = ["layerfarm", "build", "--rootfs", rootfs, "--image", f"{layout}:{tag}", f"--compress={compress}"]
            subprocess.run(command, env=no_farm(), stdin=subprocess.DEVNULL, check=True)
            registry.put(layout, tag, f"team/app:{tag}")
    return place


@contextmanager
def pushing(program: Callable[[str], str], images: Path, place: Path) -> Iterator[Pushed]:
    """Copy what :func:`made` has made, except the trees, and start the registry."""
    (place / "registry").mkdir()
    for name in ("store", "registry/data"):
        subprocess.run(["cp", "-a", "--reflink=auto", images / name, place / name], check=True)
    with Registry(place / "registry", program("docker-registry")) as registry:
        yield Pushed(registry, Layout.open(place / "store"), (images / "1", images / "2"))


def as_podman_leaves_it(root: Path) -> dict[bytes, Node]:
    """A tree without what podman does not keep: the mode of the root and, where it pulls in part, some times.

    It sets no times of symbolic links then, and those of directories before it writes into them.
    """
    found = read_tree(root)
    del found[b"."]
    return {path: replace(node, mtime=0) if node.type in ("dir", "link") else node for path, node in found.items()}
