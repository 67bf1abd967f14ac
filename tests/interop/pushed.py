"""Two tags of an image whose layers clients can pull in part, in a registry."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from layerfarm.jobs.image import Resolved, resolve
from layerfarm.jobs.store import Layout
from tests.catalog.registry import Registry
from tests.interop.conftest import Layerfarm
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
    """Two tags of team/app in a registry, the trees that they were made of, and the layout."""

    registry: Registry
    layout: Layout
    trees: tuple[Path, Path]

    def image(self, tag: str) -> Resolved:
        return resolve(self.layout, tag)

    def reference(self, tag: str) -> str:
        return f"{self.registry.host}/team/app:{tag}"


@contextmanager
def pushing(
    program: Callable[[str], str], layerfarm: Layerfarm, place: Path, compress: str, second: dict[bytes, Node]
) -> Iterator[Pushed]:
    """Push two images with layers of a kind; the second one is of the tree ``second``."""
    program("skopeo")
    layout = Layout.create(place / "store")
    trees = (tree(place / "1", contents(False)), tree(place / "2", second))
    with Registry(place / "registry", program("docker-registry")) as registry:
        for tag, rootfs in zip(("1", "2"), trees, strict=True):
            image = f"{layout.path}:{tag}"
            code, _, error = layerfarm("build", "--rootfs", rootfs, "--image", image, f"--compress={compress}")
            assert code == 0, error
            registry.put(layout.path, tag, f"team/app:{tag}")
        yield Pushed(registry, layout, trees)


def as_podman_leaves_it(root: Path) -> dict[bytes, Node]:
    """A tree without what podman does not keep: the mode of the root and, where it pulls in part, some times.

    It sets no times of symbolic links then, and those of directories before it writes into them.
    """
    found = read_tree(root)
    del found[b"."]
    return {path: replace(node, mtime=0) if node.type in ("dir", "link") else node for path, node in found.items()}
