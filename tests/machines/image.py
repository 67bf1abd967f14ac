"""The system disk of the machines: a debootstrapped Debian with layerfarm's dependencies, and its cloud kernel.

It is made once and kept in a cache directory under a digest of its recipe. layerfarm itself is on a small disk of its
own, made for each run from the checkout. Needs root, debootstrap, mke2fs (e2fsprogs) and qemu-img (qemu-utils).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.debian import ALONE, bootstrap
from tests.newcomer import copy_host, host_variables

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "machines"
SUITE: Final = os.environ.get("SUITE") or "bookworm"
"""Debian's release: 12 has Linux 6.1, and trixie, which is 13, has 6.12."""
PACKAGES: Final = (
    "python3 python3-venv kmod iproute2 iputils-ping e2fsprogs xfsprogs btrfs-progs nfs-common nfs-kernel-server"
    " samba cifs-utils glusterfs-server glusterfs-client rpcbind redis-server skopeo procps ca-certificates"
)
_LOCKS: Final = tuple(ROOT / "deploy" / name for name in ("requirements.txt", "requirements-extras.txt"))
_INIT: Final = """#!/bin/sh
# PID 1 of a machine: mounts, modules, the network by the kernel's command line, and the agent.
export PATH=/opt/environment/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export PYTHONPATH=/opt/layerfarm PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mkdir -p /run/lock /run/sendsigs.omit.d
mount -t cgroup2 cgroup2 /sys/fs/cgroup 2>/dev/null
for module in virtio_pci virtio_net virtio_console virtio_blk; do modprobe $module; done
for word in $(cat /proc/cmdline); do case $word in
    machine.number=*) number=${word#*=} ;;
    machine.name=*) hostname "${word#*=}" ;;
esac; done
ip link set lo up
ip address add "10.77.0.$number/24" dev eth0 && ip link set eth0 up
mount -o ro LABEL=layerfarm /opt/layerfarm
while ! [ -e /dev/vport0p1 ]; do sleep 0.05; done
while :; do python3 /sbin/machine-agent; sleep 1; done
"""


class Image(NamedTuple):
    """Disk from which a machine boots."""

    kernel: Path
    disk: Path
    """ext4; to be used below an overlay only."""


def system(cache: Path) -> Image:
    """The image, made if the cache has none; some minutes, and 2 GB on the way."""
    agent = Path(__file__).with_name("agent.py").read_text()
    recipe = "\0".join((SUITE, Path(__file__).read_text(), agent, *(lock.read_text() for lock in _LOCKS)))
    place = cache / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    image = Image(place / "vmlinuz", place / "system.ext4")
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as scratch:
            tree, made = Path(scratch, "tree"), Path(scratch, "made")
            made.mkdir()
            bootstrap(SUITE, tree)
            _equip(tree, agent)
            shutil.copy(next(tree.glob("boot/vmlinuz-*")), made / image.kernel.name)
            _run("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(made / image.disk.name), "3G")
            made.rename(place)
    return image


def missing_for_machines() -> str:
    """Programs that this host lacks to make and run machines."""
    commands = {"debootstrap": "debootstrap", "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils"}
    packages = [package for command, package in commands.items() if shutil.which(command) is None]
    return " and ".join(["root"] * (os.geteuid() != 0) + [f"the package {package}" for package in packages])


def program(path: Path) -> Path:
    """A small disk at ``path`` with ``layerfarm`` of this checkout, and what the trials run."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("jobs", "worker"):
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, Path(scratch, "layerfarm", name), ignore=hidden)
        for name in ("workload.py", "submitter.py"):
            shutil.copy(Path(__file__).with_name(name), scratch)
        about = Path(scratch, "layerfarm-0.dist-info", "METADATA")
        about.parent.mkdir()
        about.write_text("Metadata-Version: 2.1\nName: layerfarm\nVersion: 0\n")
        _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-L", "layerfarm", "-d", scratch, str(path), "16M")
    return path


def _equip(tree: Path, agent: str) -> None:
    """Kernel, dependencies and agent into a fresh Debian."""
    copy_host(tree)
    for lock in _LOCKS:
        shutil.copy(lock, tree / "tmp")
    steps = (
        "printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d",
        "export TMPDIR=/tmp DEBIAN_FRONTEND=noninteractive && apt-get update -qq && cd /tmp",
        f"apt-get install -y -qq --no-install-recommends {PACKAGES}",
        "apt-get download -qq $(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -1)",
        "dpkg-deb -x linux-image-*.deb /tmp/kernel",
        "cp /tmp/kernel/boot/vmlinuz-* /boot/",
        "cp -a $(find /tmp/kernel -type d -path '*lib/modules') /lib/",
        "depmod $(ls /lib/modules)",
        "python3 -m venv /opt/environment",
        *(f"/opt/environment/bin/pip install -q --no-deps --require-hashes -r /tmp/{lock.name}" for lock in _LOCKS),
        "printf '%s\\n' '#!/bin/sh' 'exec python3 -m layerfarm.worker.cli \"$@\"' >/opt/environment/bin/layerfarm",
        "chmod 755 /opt/environment/bin/layerfarm",
        "mkdir -p /opt/layerfarm",
        "rm -rf /tmp/* /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc /usr/share/locale",
    )
    _run(*ALONE, "chroot", str(tree), "/bin/sh", "-e", "-c", "\n".join(steps), **host_variables())
    for name, text in (("init", _INIT), ("machine-agent", agent)):
        (tree / "sbin" / name).unlink(missing_ok=True)
        (tree / "sbin" / name).write_text(text)
        (tree / "sbin" / name).chmod(0o755)


def _run(*command: str, **variables: str) -> None:
    done = subprocess.run(command, env=os.environ | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
