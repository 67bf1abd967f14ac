from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfarm.jobs.errors import ImageConfigError, LimitExceeded
from layerfarm.jobs.image.users import User, lookup_user
from tests.trees import char, directory, fifo, file, symlink, tree

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
broken line
nobody:x:nan:0::/:
bob:x:1000:100:Bob:/home/bob:/bin/sh
1234:x:77:78::/home/number:/bin/sh
homeless:x:2:2
"""
GROUP = b"""root:x:0:
wheel:x:10:alice,bob
users:x:100:
extra:x:2000:bob
again:x:2000:bob
numbers:x:11:1234
bad:x:abc:bob
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    return tree(tmp_path / "rootfs", {"etc/passwd": file(PASSWD), "etc/group": file(GROUP)})


@pytest.mark.parametrize(
    ("spec", "user"),
    [
        ("", User(0, 0, (), "/root")),
        ("0", User(0, 0, (), "/root")),
        ("root", User(0, 0, (), "/root")),
        ("bob", User(1000, 100, (10, 2000), "/home/bob")),
        ("bob:", User(1000, 100, (10, 2000), "/home/bob")),
        ("1000", User(1000, 100, (10, 2000), "/home/bob")),
        ("bob:wheel", User(1000, 10, (), "/home/bob")),
        ("bob:10", User(1000, 10, (), "/home/bob")),
        ("1000:10", User(1000, 10, (), "/home/bob")),
        ("1000:wheel", User(1000, 10, (), "/home/bob")),
        ("55", User(55, 0, (), None)),
        ("55:66", User(55, 66, (), None)),
        (":wheel", User(0, 10, (), "/root")),
        ("1234", User(1234, 0, (), None)),
        ("bob:users:x", User(1000, 100, (), "/home/bob")),
        ("homeless", User(2, 2, (), None)),
        ("2147483647:2147483647", User(2147483647, 2147483647, (), None)),
    ],
)
def test_C_user_table(rootfs: Path, spec: str, user: User) -> None:
    assert lookup_user(rootfs, spec) == user


@pytest.mark.parametrize(
    "spec",
    [
        "nope",
        "bob:nope",
        "-1",
        "0:-1",
        "4294967295",
        "2147483648",
        "0:2147483648",
        "9" * 1_000_000,
        "nobody",
        "broken line",
    ],
)
def test_C_user_table_errors(rootfs: Path, spec: str) -> None:
    with pytest.raises(ImageConfigError) as caught:
        lookup_user(rootfs, spec)
    assert len(str(caught.value)) < 300


def test_C_without_passwd_a_number_is_taken_and_a_name_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path, {"bin": directory()})
    assert lookup_user(tmp_path, "5:6") == User(5, 6, (), None)
    assert lookup_user(tmp_path, "") == User(0, 0, (), None)
    with pytest.raises(ImageConfigError, match="etc/passwd"):
        lookup_user(tmp_path, "root")
    with pytest.raises(ImageConfigError, match="etc/group"):
        lookup_user(tmp_path, "0:root")


def test_C_without_a_rootfs_only_numbers_are_known() -> None:
    assert lookup_user(None, "5:6") == User(5, 6, (), None)
    with pytest.raises(ImageConfigError):
        lookup_user(None, "root")


def test_B2_6_etc_passwd_symlink_to_host_is_not_followed(tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.write_bytes(b"evil:x:4242:4242::/evil:\n")
    for target in (str(host), "../../host"):
        rootfs = tree(tmp_path / target.replace("/", "_"), {"etc/passwd": symlink(target)})
        with pytest.raises(ImageConfigError):
            lookup_user(rootfs, "evil")


def test_B2_6_symlinks_resolve_inside_the_rootfs(tmp_path: Path) -> None:
    passwd = file(b"bob:x:5:6::/bob:\n")
    tree(tmp_path, {"usr/etc/passwd": passwd, "etc": symlink("/usr/etc")})
    assert lookup_user(tmp_path, "bob") == User(5, 6, (), "/bob")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("node", [fifo(), char(1, 5), directory(), symlink("passwd"), symlink("/dev/zero")])
def test_B2_6_passwd_that_is_no_regular_file_counts_as_absent_and_never_hangs(tmp_path: Path, node: object) -> None:
    tree(tmp_path, {"etc/passwd": node, "etc/group": node})  # type: ignore[dict-item]
    assert lookup_user(tmp_path, "7") == User(7, 0, (), None)
    with pytest.raises(ImageConfigError):
        lookup_user(tmp_path, "bob")


@pytest.mark.timeout(20)
def test_B2_6_huge_passwd_is_refused_before_it_is_read(tmp_path: Path) -> None:
    tree(tmp_path, {"etc/passwd": file()})
    os.truncate(tmp_path / "etc/passwd", 2 << 30)
    with pytest.raises(LimitExceeded, match=r"16777216.*passwd_bytes"):
        lookup_user(tmp_path, "0")


@pytest.mark.timeout(20)
def test_passwd_of_one_long_line_is_read_in_time(tmp_path: Path) -> None:
    tree(tmp_path, {"etc/passwd": file(b":" * ((16 << 20) - 1)), "etc/group": file(b"a," * (1 << 20))})
    assert lookup_user(tmp_path, "3") == User(3, 0, (), None)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    tree(tmp_path, {"etc/passwd": file(b"b\xffb:x:5:6::/b\xff:\n")})
    assert lookup_user(tmp_path, "b\udcffb") == User(5, 6, (), "/b\udcff")
