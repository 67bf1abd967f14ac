"""Podman of this machine, and of Debian 13 in a tree of its own, with a store that the test can look into."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

from tests.debian import ALONE

IN_TREE: Final = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
cd "$1"
mount --bind "$2" mnt
mount -t proc proc proc
for name in sys dev; do mount --rbind /$name $name; done
for name in run var/lib; do mount -t tmpfs -o mode=755 tmpfs $name; done
shift 2
exec chroot . "$@"
"""
"""Shell script that runs a command in a tree, read only, with a directory at /mnt: tree, directory, command."""
STORAGE: Final = """\
[storage]
driver = "overlay"
graphroot = "{place}/root"
runroot = "{place}/run"
[storage.options]
pull_options = {{enable_partial_images = "true"}}
"""


class Podman:
    """Podman as root, with its storage in ``place``, that pulls in part where it can."""

    def __init__(self, place: Path, tree: Path | None = None) -> None:
        """``tree``: the root of the Debian whose podman it is; None: the machine's own."""
        self._place = place
        inside = place if tree is None else Path("/mnt")
        place.mkdir()
        (place / "storage.conf").write_text(STORAGE.format(place=inside))
        # In a mount namespace of its own: podman leaves a mount in its storage.
        self._command = [
            *ALONE,
            *(() if tree is None else ("sh", "-c", IN_TREE, "sh", str(tree), str(place))),
            "podman",
        ]
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(inside),
            "TMPDIR": str(inside),
            "CONTAINERS_STORAGE_CONF": f"{inside}/storage.conf",
        }
        self._inside = inside

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(map(int, self.run("--version").split()[-1].split(".")))

    def pull(self, reference: str) -> None:
        self.run("pull", "--quiet", "--tls-verify=false", reference)

    def push(self, reference: str, target: str, *options: str) -> None:
        self.run("push", "--quiet", "--tls-verify=false", *options, reference, f"docker://{target}")

    def tree_of(self, reference: str) -> Path:
        """The directory of the newest layer of an image that was pulled."""
        (image,) = json.loads(self.run("image", "inspect", reference))
        return self._place / os.path.relpath(image["GraphDriver"]["Data"]["UpperDir"], self._inside)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"podman {arguments}: {done.stderr}"
        return done.stdout
