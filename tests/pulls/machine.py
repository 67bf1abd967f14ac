"""A Debian with clients of registries, as the root of namespaces that live as long as a block."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.debian import ALONE, bootstrap
from tests.interop.conftest import CACHE
from tests.interop.podman import IN_TREE
from tests.newcomer import copy_host, host_variables

PACKAGES: Final = ("podman", "buildah", "skopeo", "containerd", "stargz-snapshotter", "fuse3")
LIBRARY: Final = ("golang-go", "golang-github-containerd-stargz-snapshotter-dev")
SNAPSHOTTER: Final = Path("/usr/local/bin/snapshotter")
"""Daemon of stargz-snapshotter, built of its library (snapshotter.go)."""
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL: Final = """\
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$@"
apt-get clean
"""
_BUILD: Final = """\
export GO111MODULE=off GOPATH=/usr/share/gocode HOME=/root
go build -o "$@"
"""
INSIDE: Final = Path("/mnt")
"""The place of a machine, as its programs see it."""


class Failed(Exception):
    """A program ended with an error; the argument is the end of its standard error."""


def debian(suite: str) -> Path:
    """Return a minbase of a Debian with the clients, made once. Read only."""
    CACHE.mkdir(exist_ok=True)
    found, base = CACHE / f"{suite}-clients", CACHE / f"{suite}-minbase"
    if found.exists():
        return found
    with (CACHE / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not found.exists():
            if not base.exists():
                bootstrap(suite, base)
            unfinished = found.with_name(f"{found.name}.unfinished")
            _install(base, unfinished, PACKAGES)
            _build_snapshotter(base, unfinished)
            unfinished.rename(found)
    return found


def _install(base: Path, tree: Path, packages: tuple[str, ...]) -> None:
    """Make ``tree`` a copy of ``base`` with more packages."""
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", base, tree], check=True)
    copy_host(tree)
    (tree / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    _run(tree, _INSTALL, *packages)


def _build_snapshotter(base: Path, tree: Path) -> None:
    """Compile the daemon in a tree of its own, and put it into ``tree``."""
    compiler = tree.with_name(f"{tree.name}.go")
    _install(base, compiler, LIBRARY)
    shutil.copy(Path(__file__).with_name("snapshotter.go"), compiler / "root")
    _run(compiler, _BUILD, str(SNAPSHOTTER), "/root/snapshotter.go")
    shutil.copy(compiler / SNAPSHOTTER.relative_to("/"), tree / SNAPSHOTTER.relative_to("/"))
    shutil.rmtree(compiler)


def _run(tree: Path, script: str, *arguments: str) -> None:
    environment = host_variables() | {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    command = [*ALONE, "chroot", str(tree), "sh", "-ec", f"mount -t proc proc /proc\n{script}", "sh", *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"


class Machine:
    """Runs programs of a Debian. Mounts that they make are visible to all of them, and end with the block.

    ``place`` is a directory for their data, :data:`INSIDE` to them.
    """

    def __init__(self, tree: Path, place: Path) -> None:
        self.place = place
        place.mkdir()
        self._tree = tree

    def __enter__(self) -> Machine:
        wait = ("sh", "-c", "echo ready; exec sleep infinity")
        self._first = subprocess.Popen(
            [*ALONE, "sh", "-c", IN_TREE, "sh", str(self._tree), str(self.place), *wait],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"ready\n"
        (self._pid,) = map(int, Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split())
        return self

    def __exit__(self, *exc: object) -> None:
        self._first.kill()
        self._first.communicate()

    def seen(self, inside: str) -> Path:
        """Return the path by which this process sees a path of the machine, also below its mounts."""
        return Path(f"/proc/{self._pid}/root") / inside.lstrip("/")

    def run(self, *command: str) -> str:
        """Return the output of a program. Raises Failed."""
        done = subprocess.run(
            self._entering(command), env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(f"{' '.join(command)}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def start(self, name: str, *command: str, socket: str) -> None:
        """Start a daemon, and wait for its socket; its log is ``name``.log in the place."""
        with (self.place / f"{name}.log").open("ab") as log:
            daemon = subprocess.Popen(
                self._entering(command), env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 120
        while not self.seen(socket).is_socket():
            assert daemon.poll() is None, (self.place / f"{name}.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"{name} has no socket"
            time.sleep(0.1)

    def version(self, package: str) -> str:
        """Return the upstream version of a package."""
        command = ["chroot", self._tree, "dpkg-query", "--show", "--showformat=${Version}", package]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return text.partition("+")[0].partition("~")[0].rpartition("-")[0] or text.partition("+")[0].partition("~")[0]

    def _entering(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--root", "--wd", *command]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": PATH,
            "HOME": str(INSIDE),
            "TMPDIR": str(INSIDE),
            "CONTAINERS_STORAGE_CONF": f"{INSIDE}/storage.conf",
        }
