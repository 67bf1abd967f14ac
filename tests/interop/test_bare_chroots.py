"""Without /proc and /dev/shm, as in a chroot of a build: the same as elsewhere, beside umoci."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.clients import Run, assert_same, both

BARE = """
mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9
umount -l /proc; [ ! -e /proc/self ]
"""
SCRIPT = """
mkdir -p rootfs/dev; mknod rootfs/dev/null c 1 3; mkfifo rootfs/fifo; ln -s nowhere rootfs/link
for path in rootfs/link rootfs/fifo rootfs/dev/null; do setfattr -h -n security.test -v value $path; done
setfattr -n user.file -v value rootfs/etc/os-release; setfattr -n user.dir -v value rootfs/usr
chmod 000 rootfs/usr/lib/empty
find rootfs -exec touch -h -d @1000 {} +
umoci init --layout s; umoci new --image s:t
umoci insert --image s:t rootfs /
umoci config --image s:t --config.user 0
umoci unpack --image s:t bundle
umoci raw unpack --image base:latest raw
umoci raw runtime-config --image base:latest --rootfs raw --rootless runtime.json
rm bundle/rootfs/link; touch -d @2000 bundle/rootfs/etc/os-release
umoci repack --refresh-bundle --image s:n bundle
umoci unpack --rootless --image s:n rootless
umoci repack --image s:n2 rootless
umoci gc --layout s
"""


@pytest.fixture
def run(as_root: None, tmp_path: Path, program: Callable[[str], str]) -> Run:
    program("setfattr")
    return both(tmp_path, program("umoci"))


@pytest.mark.parametrize("processors", ["0", "0,1"], ids=["one process", "a pool of processes"])
def test_neither_proc_nor_dev_shm_is_needed(run: Run, processors: str) -> None:
    if not set(map(int, processors.split(","))) <= os.sched_getaffinity(0):
        pytest.skip("program not installed: a second processor")
    theirs, ours = run(["taskset", "-c", processors, "unshare", "--mount", "bash", "-ec", BARE + SCRIPT])
    assert theirs.code == 0, theirs.err
    assert_same(theirs, ours, dated=False)
