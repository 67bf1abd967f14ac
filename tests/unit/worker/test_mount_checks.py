"""The doctor's judgement of how a store is mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.worker.doctor.finding import Level
from layerfarm.worker.doctor.mount_checks import Mount, examine_mount, judge, mount_of

INFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:26 / /mnt/with\040space rw - nfs4 10.77.0.1:/ rw,vers=4.2,hard,lookupcache=pos,local_lock=none
32 22 0:27 / /mnt/store rw - nfs 10.77.0.1:/srv rw,vers=3,hard,nolock,local_lock=all
33 22 0:28 / /mnt/store rw shared:9 master:2 - btrfs /dev/vdb rw,subvol=/a
34 22 0:29 / /mnt/store-2 rw - xfs /dev/vdc rw
not a line
"""
GOOD = {"vers": "4.2", "hard": "", "lookupcache": "pos", "local_lock": "none"}


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/srv/layout", "/", "ext4"),
        ("/mnt/with space/layout", "/mnt/with space", "nfs4"),
        ("/mnt/store", "/mnt/store", "btrfs"),
        ("/mnt/store-2/x", "/mnt/store-2", "xfs"),
        ("/mnt/store-3", "/", "ext4"),
    ],
)
def test_the_mount_of_a_path_is_the_last_of_the_deepest(path: str, point: str, kind: str) -> None:
    found = mount_of(Path(path), INFO)
    assert found is not None
    assert (found.point, found.kind) == (Path(point), kind)


def test_options_have_values() -> None:
    found = mount_of(Path("/mnt/with space"), INFO)
    assert found is not None
    assert found.options == {"rw": "", **GOOD}


def test_no_line_no_mount() -> None:
    assert mount_of(Path("/x"), "not a line\n") is None


@pytest.mark.parametrize(
    ("options", "levels", "said"),
    [
        (GOOD, [Level.OK], "version 4.2"),
        (GOOD | {"local_lock": "flock"}, [Level.FAIL], "local_lock=flock"),
        (GOOD | {"nocto": ""}, [Level.FAIL], "nocto"),
        (GOOD | {"vers": "3"}, [Level.WARN, Level.OK], "version 3"),
        (GOOD | {"vers": "3", "nolock": "", "local_lock": "all"}, [Level.FAIL], "nolock and local_lock=all"),
        ({"vers": "4.2", "soft": "", "lookupcache": "pos"}, [Level.WARN, Level.OK], "with soft"),
        ({"vers": "4.2", "softerr": "", "lookupcache": "pos"}, [Level.WARN, Level.OK], "with softerr"),
        ({"vers": "4.1", "hard": ""}, [Level.WARN, Level.OK], "lookupcache=positive"),
    ],
)
def test_options_of_nfs(options: dict[str, str], levels: list[Level], said: str) -> None:
    found = list(judge(Mount(Path("/mnt"), "nfs4", options), "store"))
    assert [finding.level for finding in found] == levels
    assert said in found[0].what


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("cifs", Level.FAIL),
        ("smb3", Level.FAIL),
        ("fuse.glusterfs", Level.FAIL),
        ("fuse.sshfs", Level.WARN),
        ("9p", Level.WARN),
    ],
)
def test_other_shared_filesystems(kind: str, level: Level) -> None:
    assert [finding.level for finding in judge(Mount(Path("/mnt"), kind, {}), "store")] == [level]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay"])
def test_a_filesystem_of_one_host_needs_no_word(kind: str) -> None:
    assert list(judge(Mount(Path("/"), kind, {"rw": ""}), "store")) == []


def test_this_machine_is_read(tmp_path: Path) -> None:
    assert Level.FAIL not in [finding.level for finding in examine_mount(tmp_path, "store")]
