"""Components of trees that the real package managers have made."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import Run
from tests.unit.relayer.owned import image_tree, keys, ownership, versions

Program = Callable[[str], str]


def test_debian_files_belong_to_the_packages_that_dpkg_names(debian: Path, program: Program, run: Run) -> None:
    found = ownership(debian)
    assert found.warnings == []
    by_kind = Counter(owner.kind for owner in found.owners.values())
    assert by_kind["dpkg"] > 0.9 * (sum(by_kind.values()) - by_kind["file"])
    for owned, package in ((b"usr/bin/bash", "bash"), (b"usr/lib/x86_64-linux-gnu/libc.so.6", "libc6")):
        if owned in found.owners:
            assert found.owners[owned].key == f"dpkg:{package}"
    listed = run(program("dpkg-query"), "--admindir", debian / "var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n")
    installed = dict(line.split(" ") for line in listed.splitlines())
    seen = {owner.name: owner.version for owner in found.owners.values() if owner.kind == "dpkg"}
    assert seen.items() <= installed.items()
    assert len(seen) > 0.9 * len(installed)  # some packages own nothing but directories


SPEC = """\
Name: hello
Version: 1.0
Release: 3
Epoch: 2
Summary: says hello
License: MIT
BuildArch: noarch
%description
says hello
%package data
Summary: what it says
%description data
what it says
%install
mkdir -p %{buildroot}/usr/share/hello %{buildroot}/usr/bin
echo hi > %{buildroot}/usr/share/hello/greeting
echo '#!/bin/sh' > %{buildroot}/usr/bin/hello
ln -s hello %{buildroot}/usr/bin/hi
%files
/usr/bin/*
%files data
/usr/share/hello
"""


@pytest.fixture
def rpm_root(as_root: None, tmp_path: Path, program: Program, run: Run) -> Path:
    """A root into which rpm has installed two packages of one source."""
    (tmp_path / "hello.spec").write_text(SPEC)
    run(program("rpmbuild"), "--quiet", "--define", f"_topdir {tmp_path}/top", "-bb", tmp_path / "hello.spec")
    packages = sorted((tmp_path / "top").rglob("*.rpm"))
    assert len(packages) == 2
    root = tmp_path / "root"
    (root / "usr/lib/sysimage/rpm").mkdir(parents=True)
    run(
        program("rpm"), "--root", root, "--define", "_db_backend sqlite", "--define", "_dbpath /usr/lib/sysimage/rpm",
        "--nodeps", "--ignorearch", "-i", *packages,
    )  # fmt: skip
    return root


OWNED_BY_RPM = {
    "usr/bin/hello": "rpm:hello",
    "usr/bin/hi": "rpm:hello",
    "usr/share/hello/greeting": "rpm:hello-data",
}


def test_rpm_sqlite_database(rpm_root: Path) -> None:
    found = keys(rpm_root)
    assert {path: key for path, key in found.items() if key != "database:rpm"} == OWNED_BY_RPM
    assert found["usr/lib/sysimage/rpm/rpmdb.sqlite"] == "database:rpm"
    assert versions(rpm_root)["rpm:hello"] == "2:1.0-3"
    assert {owner.source for owner in ownership(rpm_root).owners.values() if owner.source} == {"rpm:hello"}


def test_rpm_database_with_a_write_ahead_log_is_read_and_left_as_it_is(rpm_root: Path) -> None:
    """As an image has it whose build was cut off: the packages are in the log alone."""
    place = rpm_root / "usr/lib/sysimage/rpm/rpmdb.sqlite"
    connection = sqlite3.connect(place)
    connection.execute("PRAGMA journal_mode=WAL")
    (last,) = connection.execute("SELECT blob FROM Packages ORDER BY hnum DESC").fetchall()[0]
    connection.execute("DELETE FROM Packages")
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.execute("INSERT INTO Packages VALUES (7, ?)", (last,))
    connection.commit()
    copy = rpm_root.with_name("copy")
    shutil.copytree(rpm_root, copy, symlinks=True)
    connection.close()
    before = {path: path.read_bytes() for path in copy.rglob("rpmdb*")}
    assert len(before) == 3
    assert len({owner.key for owner in ownership(copy).owners.values() if owner.kind == "rpm"}) == 1
    assert {path: path.read_bytes() for path in copy.rglob("rpmdb*")} == before


def test_rpm_ndb_database(rpm_root: Path) -> None:
    """Debian's rpm writes none: the same headers, put into a file of that format."""
    place = rpm_root / "usr/lib/sysimage/rpm"
    connection = sqlite3.connect(place / "rpmdb.sqlite")
    headers = [blob for (blob,) in connection.execute("SELECT blob FROM Packages")]
    connection.close()
    for path in place.iterdir():
        path.unlink()
    slots, blobs, block = b"", b"", 256
    for index, header in enumerate(headers, 1):
        blob = struct.pack("<4sIII", b"BlbS", index, 1, len(header)) + header
        blob += bytes(-(len(blob) + 12) % 16) + struct.pack("<II4s", 0, len(header), b"BlbE")
        slots += struct.pack("<4sIII", b"Slot", index, block, len(blob) // 16)
        blobs += blob
        block += len(blob) // 16
    free = struct.pack("<4sIII", b"Slot", 0, 0, 0)
    table = (struct.pack("<4sIIIIIII", b"RpmP", 0, 9, 1, 3, 0, 0, 0) + slots).ljust(4096, b"\0")
    table = table[: 32 + len(slots)] + free * ((4096 - 32 - len(slots)) // 16)
    (place / "Packages.db").write_bytes(table + blobs)
    found = keys(rpm_root)
    assert {path: key for path, key in found.items() if key != "database:rpm"} == OWNED_BY_RPM


def test_pacman(as_root: None, tmp_path: Path, program: Program, run: Run) -> None:
    content = tmp_path / "content"
    (content / "usr/bin").mkdir(parents=True)
    (content / "usr/bin/tool").write_text("#!/bin/sh\n")
    (content / ".PKGINFO").write_text(
        "pkgname = tool\npkgbase = tools\npkgver = 1.2-3\npkgdesc = a tool\nbuilddate = 1600000000\n"
        "packager = somebody\nsize = 10\narch = any\n"
    )
    archive = tmp_path / "tool-1.2-3-any.pkg.tar"
    run(program("bsdtar"), "-cf", archive, ".PKGINFO", "usr", cwd=content)
    root = tmp_path / "root"
    (root / "var/lib/pacman").mkdir(parents=True)
    (root / "etc").mkdir()
    (tmp_path / "pacman.conf").write_text(
        "[options]\nArchitecture = auto\nSigLevel = Never\nLocalFileSigLevel = Never\n"
    )
    run(
        program("pacman"), "--root", root, "--config", tmp_path / "pacman.conf", "--cachedir", tmp_path / "cache",
        "--noconfirm", "--noscriptlet", "-U", archive,
    )  # fmt: skip
    found = keys(root)
    assert found["usr/bin/tool"] == found["var/lib/pacman/local/tool-1.2-3/files"] == "pacman:tool"
    assert found["var/lib/pacman/local/tool-1.2-3/desc"] == "database:pacman"
    assert versions(root)["pacman:tool"] == "1.2-3"
    assert {owner.source for owner in ownership(root).owners.values() if owner.kind == "pacman"} == {"pacman:tools"}


def test_pip(tmp_path: Path, run: Run) -> None:
    wheel = tmp_path / "Some_Thing-1.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_thing/__init__.py", "x = 1\n")
        archive.writestr("some_thing-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: Some.Thing\nVersion: 1.5\n")
        archive.writestr("some_thing-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_thing-1.5.dist-info/entry_points.txt", "[console_scripts]\nsome=some_thing:main\n")
        archive.writestr(
            "some_thing-1.5.dist-info/RECORD",
            "some_thing/__init__.py,,\nsome_thing-1.5.dist-info/METADATA,,\nsome_thing-1.5.dist-info/WHEEL,,\n"
            "some_thing-1.5.dist-info/entry_points.txt,,\nsome_thing-1.5.dist-info/RECORD,,\n",
        )
    root = tmp_path / "root"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check",
        "--root-user-action=ignore", "--ignore-installed", "--compile", "--prefix", "/usr/local", "--root", root, wheel,
    )  # fmt: skip
    found = keys(root)
    assert {"usr/local/bin/some"} < set(found)
    assert any(path.endswith(".pyc") for path in found)
    (key,) = set(found.values())
    assert key.startswith("python:some-thing in usr/local/lib/python3")
    assert versions(root) == {key: "1.5"}


def test_npm(tmp_path: Path, program: Program, run: Run) -> None:
    for name, text in (
        ("left", '{"name": "left", "version": "1.0.0", "dependencies": {"@s/right": "file:s-right-2.1.0.tgz"}}'),
        ("right", '{"name": "@s/right", "version": "2.1.0"}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "package.json").write_text(text)
        (tmp_path / name / "index.js").write_text("module.exports = 1\n")
    npm = program("npm")
    offline = {
        "npm_config_cache": str(tmp_path / "cache"),
        "npm_config_update_notifier": "false",
        "HOME": str(tmp_path),
    }
    run(npm, "pack", "--silent", "./right", **offline)
    shutil.copy(tmp_path / "s-right-2.1.0.tgz", tmp_path / "left")
    run(npm, "pack", "--silent", "./left", **offline)
    app = tmp_path / "root" / "srv" / "app"
    app.mkdir(parents=True)
    run(
        npm, "install", "--offline", "--silent", "--no-audit", "--no-fund", "--prefix", app,
        tmp_path / "left-1.0.0.tgz", tmp_path / "s-right-2.1.0.tgz", **offline,
    )  # fmt: skip
    found = keys(tmp_path / "root")
    assert found["srv/app/node_modules/left/index.js"] == "npm:srv/app/node_modules/left"
    assert found["srv/app/node_modules/@s/right/index.js"] == "npm:srv/app/node_modules/@s/right"
    assert found["srv/app/package-lock.json"] == "tree:srv/app"
    assert versions(tmp_path / "root")["npm:srv/app/node_modules/@s/right"] == "2.1.0"


def test_gem(tmp_path: Path, program: Program, run: Run) -> None:
    source = tmp_path / "source"
    (source / "lib").mkdir(parents=True)
    (source / "lib/ruby-thing.rb").write_text("THING = 1\n")
    (source / "ruby-thing.gemspec").write_text(
        'Gem::Specification.new { |s| s.name = "ruby-thing"; s.version = "0.3.1"; s.summary = "x"; s.authors = ["x"]\n'
        's.files = ["lib/ruby-thing.rb"] }\n'
    )
    gem = program("gem")
    run(gem, "build", "--silent", "ruby-thing.gemspec", cwd=source, HOME=str(tmp_path))
    home = tmp_path / "root/var/lib/gems/3.1.0"
    archive = next(source.glob("*.gem"))
    run(gem, "install", "--silent", "--local", "--no-document", "--install-dir", home, archive, HOME=str(tmp_path))
    found = keys(tmp_path / "root")
    key = "gem:ruby-thing in var/lib/gems/3.1.0"
    for path in (
        "gems/ruby-thing-0.3.1/lib/ruby-thing.rb",
        "specifications/ruby-thing-0.3.1.gemspec",
        "cache/ruby-thing-0.3.1.gem",
    ):
        assert found[f"var/lib/gems/3.1.0/{path}"] == key
    assert versions(tmp_path / "root")[key] == "0.3.1"


def test_jar(tmp_path: Path) -> None:
    archive = tmp_path / "root/opt/lib/commons-io-2.15.1.jar"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    assert keys(tmp_path / "root") == {"opt/lib/commons-io-2.15.1.jar": "jar:opt/lib/commons-io"}


def test_a_whole_debian_is_partitioned(debian: Path) -> None:
    found = ownership(debian)
    paths = subprocess.run(
        ["find", ".", "!", "-type", "d", "-print0"], cwd=debian, capture_output=True, check=True
    ).stdout.split(b"\0")
    assert set(found.owners) == {path.removeprefix(b"./") for path in paths if path}
    assert all(found.owners[path] == found.owners[group[0]] for path, group in image_tree(debian).links.items())
