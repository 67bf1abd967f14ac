"""Clients of registries: each pulls images into storage of its own, and shows their trees."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.interop.podman import STORAGE
from tests.pulls.machine import INSIDE, SNAPSHOTTER, Machine

_CONTAINERD: Final = """\
version = 2
root = "/mnt/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd/containerd.sock"
[proxy_plugins.stargz]
type = "snapshot"
address = "/run/stargz/stargz.sock"
"""


class Client(ABC):
    """One program on a machine whose place holds nothing else."""

    package: ClassVar[str]
    lazy = False
    """Files are fetched when they are read."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @abstractmethod
    def pull(self, reference: str) -> None:
        """Pull an image from a registry without TLS. Raises Failed."""

    @abstractmethod
    def tree(self, reference: str) -> Path:
        """Return the tree of an image that was pulled. Raises Failed."""


class _ContainersStorage(Client):
    """A program with the storage of podman, which shows the tree."""

    command: ClassVar[tuple[str, ...]]

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        (machine.place / "storage.conf").write_text(STORAGE.format(place=INSIDE))

    def pull(self, reference: str) -> None:
        self.machine.run(*self.command, reference)

    def tree(self, reference: str) -> Path:
        return self.machine.seen(self.machine.run("podman", "image", "mount", reference).strip())


class Podman(_ContainersStorage):
    package = "podman"
    command = ("podman", "pull", "--quiet", "--tls-verify=false")


class Buildah(_ContainersStorage):
    package = "buildah"
    command = ("buildah", "pull", "--quiet", "--tls-verify=false")


class Skopeo(_ContainersStorage):
    """skopeo that copies into podman's storage."""

    package = "skopeo"

    def pull(self, reference: str) -> None:
        command = ("skopeo", f"--tmpdir={INSIDE}", "copy", "--quiet", "--src-tls-verify=false")
        self.machine.run(*command, f"docker://{reference}", f"containers-storage:{reference}")


class Containerd(Client):
    """containerd with its overlay snapshotter."""

    package = "containerd"
    pulling: tuple[str, ...] = ("ctr", "images", "pull", "--plain-http")

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        (machine.place / "containerd.toml").write_text(_CONTAINERD)
        self._trees = 0
        self.before()
        machine.start(
            "containerd", "containerd", "--config=/mnt/containerd.toml", socket="/run/containerd/containerd.sock"
        )

    def before(self) -> None:
        """Start what containerd needs."""

    def pull(self, reference: str) -> None:
        self.machine.run(*self.pulling, reference)

    def tree(self, reference: str) -> Path:
        # containerd shows the image that was first mounted at a path, also after that was unmounted.
        self._trees += 1
        target = f"{INSIDE}/tree-{self._trees}"
        (self.machine.place / f"tree-{self._trees}").mkdir()
        self.mount(reference, target)
        return self.machine.seen(target)

    def mount(self, reference: str, target: str) -> None:
        """Mount the tree of an image that was pulled. Raises Failed."""
        self.machine.run("ctr", "images", "mount", reference, target)


class Stargz(Containerd):
    """containerd with stargz-snapshotter, without its fetching in the background."""

    package = "stargz-snapshotter"
    lazy = True
    pulling = ("ctr-remote", "images", "rpull", "--plain-http")

    def before(self) -> None:
        socket = "/run/stargz/stargz.sock"
        self.machine.seen(socket).parent.mkdir(exist_ok=True)
        self.machine.start("stargz", str(SNAPSHOTTER), f"{INSIDE}/stargz", socket, socket=socket)

    def mount(self, reference: str, target: str) -> None:
        # Not `ctr images mount`, which wants the blobs of the layers.
        chain = ""
        for diff_id in self._config(reference)["rootfs"]["diff_ids"]:
            chain = f"sha256:{sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
        command = ("ctr", "snapshots", "--snapshotter=stargz", "view", f"--target={target}", target, chain)
        # By the old call, because fsconfig(2) refuses long lists of layers.
        self.machine.run("sh", "-ec", f"export LIBMOUNT_FORCE_MOUNT2=always\n{self.machine.run(*command)}")

    def _config(self, reference: str) -> dict[str, Any]:
        listed = self.machine.run("ctr", "images", "ls", f"name=={reference}")
        manifest = json.loads(self.machine.run("ctr", "content", "get", listed.splitlines()[1].split()[2]))
        config: dict[str, Any] = json.loads(self.machine.run("ctr", "content", "get", manifest["config"]["digest"]))
        return config


CLIENTS: Final = (Podman, Buildah, Skopeo, Containerd, Stargz)
