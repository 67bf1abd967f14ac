"""Owners of files: databases in their real formats, the order of claims, broken and hostile input."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfarm.jobs.mtree import Entry
from layerfarm.jobs.relayer.components import ImageTree, Rule, find_owners
from tests.examples import examples
from tests.trees import MTIME, Node, directory, file, hardlink, symlink, tree
from tests.unit.relayer.owned import keys, ownership, versions

LATER = MTIME + 10**15


def dpkg_status(*packages: tuple[str, str, str]) -> Node:
    """A status file of ``(name, version, further fields)``."""
    return file(
        "\n".join(
            f"Package: {name}\nStatus: install ok installed\nArchitecture: amd64\n{more}Version: {version}\n"
            f"Description: something\n of several lines\n .\n indeed\n"
            for name, version, more in packages
        ).encode()
    )


def test_dpkg_lists_are_followed_through_the_links_of_a_merged_usr(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "bin": symlink("usr/bin"),
            "lib": symlink("/usr/lib"),
            "usr/bin/dash": file(b"shell"),
            "usr/bin/sh": symlink("dash"),
            "usr/lib/liba.so.1": file(b"a"),
            "etc/unowned": file(b"u"),
            "var/lib/dpkg/status": dpkg_status(("dash", "0.5", ""), ("liba", "1-2", "Source: a (1-1)\n")),
            "var/lib/dpkg/info/dash.list": file(b"/.\n/bin\n/bin/dash\n/bin/sh\n/usr/share/doc/left-out\n"),
            "var/lib/dpkg/info/dash.md5sums": file(b""),
            "var/lib/dpkg/info/liba:amd64.list": file(b"/.\n/lib\n/lib/liba.so.1\n"),
        },
    )
    assert keys(root) == {
        "bin": "tree:",
        "lib": "tree:",
        "usr/bin/dash": "dpkg:dash",
        "usr/bin/sh": "dpkg:dash",
        "usr/lib/liba.so.1": "dpkg:liba",
        "etc/unowned": "tree:etc",
        "var/lib/dpkg/status": "database:dpkg",
        "var/lib/dpkg/info/dash.list": "database:dpkg",
        "var/lib/dpkg/info/dash.md5sums": "dpkg:dash",
        "var/lib/dpkg/info/liba:amd64.list": "database:dpkg",
    }
    assert versions(root)["dpkg:liba"] == "1-2"
    sources = {owner.key: owner.source for owner in ownership(root).owners.values()}
    assert (sources["dpkg:dash"], sources["dpkg:liba"]) == ("dpkg:dash", "dpkg:a")


def test_two_architectures_of_a_package_are_two_components(tmp_path: Path) -> None:
    status = b"".join(
        b"Package: %b\nArchitecture: %b\nStatus: install ok installed\nVersion: 2\n\n" % named
        for named in ((b"libc6", b"amd64"), (b"libc6", b"i386"), (b"dash", b"amd64"), (b"base", b"all"))
    )
    root = tree(
        tmp_path / "root",
        {
            "lib/x86/libc.so": file(b"64"),
            "lib/i386/libc.so": file(b"32"),
            "var/lib/dpkg/status": file(status),
            "var/lib/dpkg/info/libc6:amd64.list": file(b"/lib/x86/libc.so\n"),
            "var/lib/dpkg/info/libc6:i386.list": file(b"/lib/i386/libc.so\n"),
        },
    )
    found = keys(root)
    assert (found["lib/x86/libc.so"], found["lib/i386/libc.so"]) == ("dpkg:libc6", "dpkg:libc6:i386")


def test_a_diverted_file_belongs_to_its_package_under_the_name_that_it_has_now(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "usr/bin/vi": file(b"mine"),
            "usr/bin/vi.distrib": file(b"theirs"),
            "var/lib/dpkg/status": dpkg_status(("editor", "1", ""), ("override", "1", "")),
            "var/lib/dpkg/diversions": file(b"/usr/bin/vi\n/usr/bin/vi.distrib\noverride\n"),
            "var/lib/dpkg/info/editor.list": file(b"/usr/bin/vi\n"),
            "var/lib/dpkg/info/override.list": file(b"/usr/bin/vi\n"),
        },
    )
    found = keys(root)
    assert (found["usr/bin/vi"], found["usr/bin/vi.distrib"]) == ("dpkg:override", "dpkg:editor")


def test_files_made_or_changed_after_the_package_was_built_are_its_generated_part(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "etc/conf": file(b"edited", mtime=LATER),
            "etc/other": file(b"as shipped"),
            "usr/lib/p.py": file(b"pass"),
            "usr/lib/__pycache__/p.cpython-311.pyc": file(b"code", mtime=LATER),
            "usr/lib/__pycache__/q.cpython-311.pyc": file(b"of nobody", mtime=LATER),
            "var/lib/dpkg/status": dpkg_status(("p", "1", "")),
            "var/lib/dpkg/info/p.list": file(b"/etc/conf\n/etc/other\n/usr/lib/p.py\n", mtime=LATER),
            "var/lib/dpkg/info/p.md5sums": file(b""),
        },
    )
    found = keys(root)
    assert found["etc/other"] == found["usr/lib/p.py"] == "dpkg:p"
    assert found["etc/conf"] == found["usr/lib/__pycache__/p.cpython-311.pyc"] == "dpkg:p#generated"
    assert found["usr/lib/__pycache__/q.cpython-311.pyc"] == "tree:usr/lib/__pycache__"


def test_distroless_images_have_a_paragraph_a_package(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "usr/share/zoneinfo/UTC": file(b"tz"),
            "var/lib/dpkg/status.d/tzdata": file(b"Package: tzdata\nVersion: 2024a\nArchitecture: all\n"),
            "var/lib/dpkg/status.d/tzdata.md5sums": file(b"0" * 32 + b"  usr/share/zoneinfo/UTC\n"),
        },
    )
    assert set(keys(root).values()) == {"dpkg:tzdata"}
    assert versions(root) == {"dpkg:tzdata": "2024a"}


APK = b"""\
C:Q1abc=
P:musl
V:1.2.4-r2
A:x86_64
o:musl
F:lib
R:ld-musl-x86_64.so.1
a:0:0:755
Z:Q1def=
R:libc.musl-x86_64.so.1
F:usr/share
M:0:0:1777

C:Q1ghi=
P:busybox-binsh
V:1.36.1-r5
o:busybox
F:bin
R:sh
F:
R:at-the-root

"""


def test_apk_says_folder_and_then_its_files(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "lib/ld-musl-x86_64.so.1": file(b"musl", mode=0o755),
            "lib/libc.musl-x86_64.so.1": symlink("ld-musl-x86_64.so.1"),
            "bin/sh": symlink("/bin/busybox"),
            "at-the-root": file(b"r"),
            "lib/apk/db/installed": file(APK),
            "lib/apk/db/scripts.tar": file(b""),
        },
    )
    assert keys(root) == {
        "lib/ld-musl-x86_64.so.1": "apk:musl",
        "lib/libc.musl-x86_64.so.1": "apk:musl",
        "bin/sh": "apk:busybox-binsh",
        "at-the-root": "apk:busybox-binsh",
        "lib/apk/db/installed": "database:apk",
        "lib/apk/db/scripts.tar": "database:apk",
    }
    assert {owner.source for owner in ownership(root).owners.values()} == {"apk:musl", "apk:busybox", ""}
    assert versions(root)["apk:musl"] == "1.2.4-r2"


def ndb(block: int) -> bytes:
    """An ndb database of one page, whose only package is in this block of 16 bytes."""
    slots = struct.pack("<4sIII", b"RpmP", 0, 1, 1) + bytes(16) + struct.pack("<4sIII", b"Slot", 1, block, 1)
    return slots + struct.pack("<4sIII", b"Slot", 0, 0, 0) * ((4096 - len(slots)) // 16) + bytes(64)


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("var/lib/dpkg/status", b"Package: a\nthis is no field\n", "dpkg"),
        ("var/lib/dpkg/status", b"Version: 1\n\n", "dpkg"),
        ("var/lib/dpkg/status", b" continues nothing\n", "dpkg"),
        ("lib/apk/db/installed", b"P:a\nnonsense\n", "apk"),
        ("lib/apk/db/installed", b"V:1\nF:etc\nR:f\n", "apk"),
        ("var/lib/rpm/rpmdb.sqlite", b"no database", "rpm"),
        ("var/lib/rpm/Packages.db", b"RpmX", "rpm"),
        ("var/lib/rpm/Packages.db", struct.pack("<4sIII", b"RpmP", 0, 1, 200).ljust(4096, b"\0"), "rpm"),
        ("var/lib/rpm/Packages.db", struct.pack("<4sIII", b"RpmP", 0, 1, 1).ljust(4096, b"\1"), "rpm"),
        ("var/lib/rpm/Packages.db", ndb(1 << 20), "rpm"),
        ("var/lib/rpm/Packages.db", ndb(256), "rpm"),
        ("var/lib/rpm/Packages", b"Berkeley", "rpm"),
        ("var/lib/pacman/local/a-1/desc", b"before any section\n", "pacman"),
        ("var/lib/pacman/local/a-1/desc", b"%VERSION%\n1\n", "pacman"),
        ("usr/lib/python3/a-1.dist-info/RECORD", b'"never closed\n', "Python"),
    ],
)
def test_a_broken_database_is_ignored_with_a_warning(tmp_path: Path, path: str, content: bytes, said: str) -> None:
    root = tree(tmp_path / "root", {path: file(content), "etc/f": file(b"f")})
    found = ownership(root)
    (warning,) = found.warnings
    assert warning.startswith(f"{said} database cannot be used, its files are grouped by directory: ")
    assert found.owners[b"etc/f"].key == "tree:etc"
    assert set(found.owners) == {path.encode(), b"etc/f"}


@pytest.mark.parametrize(
    "header", [struct.pack(">II", 1 << 30, 1 << 30) + b"junk", struct.pack(">II", 1, 4) + bytes(20), "text", 7]
)
def test_a_sqlite_database_whose_headers_are_damaged_is_broken(tmp_path: Path, header: bytes | str | int) -> None:
    root = tree(tmp_path / "root", {"usr/lib/sysimage/rpm": directory()})
    connection = sqlite3.connect(root / "usr/lib/sysimage/rpm/rpmdb.sqlite")
    with connection:
        connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
        connection.execute("INSERT INTO Packages VALUES (1, ?)", (header,))
    connection.close()
    (warning,) = ownership(root).warnings
    assert "header of a package" in warning


def test_what_is_beside_the_packages_of_a_database_owns_nothing(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "var/lib/dpkg/status.d/empty": file(b"\n"),
            "var/lib/dpkg/status.d/empty.md5sums": file(b"0  etc/f\n"),
            "var/lib/pacman/local/ALPM_DB_VERSION": file(b"9\n"),
            "srv/node_modules/none/index.js": file(b""),
            "srv/gems/README": file(b""),
            "etc/f": file(b"f"),
        },
    )
    assert ownership(root).warnings == []
    assert {key.partition(":")[0] for key in keys(root).values()} == {"tree", "database"}
    assert keys(root)["etc/f"] == "tree:etc"


def test_node_packages_own_their_files_and_not_their_dependencies(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "app/node_modules/a/package.json": file(b'{"name": "a", "version": "1.0.1"}'),
            "app/node_modules/a/lib/a.js": file(b"a"),
            "app/node_modules/a/node_modules/@s/b/package.json": file(b"not even json"),
            "app/node_modules/a/node_modules/@s/b/b.js": file(b"b"),
            "app/node_modules/.package-lock.json": file(b"{}"),
            "app/index.js": file(b"x"),
        },
    )
    assert keys(root) == {
        "app/node_modules/a/package.json": "npm:app/node_modules/a",
        "app/node_modules/a/lib/a.js": "npm:app/node_modules/a",
        "app/node_modules/a/node_modules/@s/b/package.json": "npm:app/node_modules/a/node_modules/@s/b",
        "app/node_modules/a/node_modules/@s/b/b.js": "npm:app/node_modules/a/node_modules/@s/b",
        "app/node_modules/.package-lock.json": "tree:app/node_modules",
        "app/index.js": "tree:app",
    }
    assert versions(root)["npm:app/node_modules/a"] == "1.0.1"


def test_jars_keep_their_key_from_version_to_version(tmp_path: Path) -> None:
    before = tree(tmp_path / "before", {"opt/app/lib/guava-32.1.jar": file(b"old"), "opt/app/app.war": file(b"w")})
    after = tree(tmp_path / "after", {"opt/app/lib/guava-33.0-jre.jar": file(b"new"), "opt/app/app.war": file(b"w")})
    assert set(keys(before).values()) == set(keys(after).values()) == {"jar:opt/app/lib/guava", "jar:opt/app/app"}
    assert (versions(before)["jar:opt/app/lib/guava"], versions(after)["jar:opt/app/lib/guava"]) == ("32.1", "33.0-jre")


def test_a_large_file_without_owner_is_alone_and_numbers_do_not_name_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"opt/model-7.bin": file(bytes(1 << 20)), "opt/small": file(b"s")})
    assert keys(root) == {"opt/model-7.bin": "file:opt/model-#.bin", "opt/small": "tree:opt"}


def test_the_operators_rules_come_first(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "srv/models/large": file(bytes(1 << 20)),
            "srv/models/deep/down/small": file(b"s"),
            "srv/app": file(b"a"),
            "usr/bin/tool": file(b"t"),
            "var/lib/dpkg/status": dpkg_status(("tool", "1", "")),
            "var/lib/dpkg/info/tool.list": file(b"/usr/bin/tool\n"),
        },
    )
    found = keys(
        root, [Rule("models", ("/srv/models/*", "no/such")), Rule("service", ("srv/*",)), Rule("mine", ("*/tool",))]
    )
    assert found["srv/models/large"] == found["srv/models/deep/down/small"] == "rule:models"
    assert found["srv/app"] == "rule:service"
    assert found["usr/bin/tool"] == "rule:mine"


def test_the_names_of_an_inode_are_never_parted(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "usr/bin/perl": file(b"perl"),
            "usr/bin/perl5.36": hardlink("usr/bin/perl"),
            "opt/copy": hardlink("usr/bin/perl"),
            "var/lib/dpkg/status": dpkg_status(("perl", "1", ""), ("perl-base", "1", "")),
            "var/lib/dpkg/info/perl.list": file(b"/usr/bin/perl\n"),
            "var/lib/dpkg/info/perl-base.list": file(b"/usr/bin/perl5.36\n"),
        },
    )
    found = ownership(root)
    group = (b"opt/copy", b"usr/bin/perl", b"usr/bin/perl5.36")
    assert len({found.owners[path] for path in group}) == 1


def test_links_that_lead_nowhere_round_in_circles_or_out_of_the_root_own_nothing(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {
            "a": symlink("b"),
            "b": symlink("a"),
            "up": symlink("../../../../etc"),
            "gone": symlink("nowhere"),
            "etc/hostname": file(b"inside"),
            "var/lib/dpkg/status": dpkg_status(("p", "1", "")),
            "var/lib/dpkg/info/p.list": file(b"/a/x\n/gone/x\n/up/hostname\n/etc/hostname/x\n/../../etc/shadow\n"),
        },
    )
    found = keys(root)
    assert found["etc/hostname"] == "dpkg:p"  # as the kernel would go: .. of the root is the root
    assert set(found) == {
        "a", "b", "up", "gone", "etc/hostname", "var/lib/dpkg/status", "var/lib/dpkg/info/p.list",
    }  # fmt: skip


def test_every_path_but_directories_is_owned_exactly_once_whatever_its_name(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "root",
        {b"odd/\xff\n": file(b"x"), b"odd/empty": directory(), b"odd/link": symlink("x"), b"top": file(b"t")},
    )
    found = ownership(root)
    assert set(found.owners) == {b"odd/\xff\n", b"odd/link", b"top"}
    assert found.warnings == []


DATABASES = {
    b"var/lib/dpkg/status": b"Package: a\nArchitecture: amd64\nVersion: 1\n\nPackage: b\nSource: a (2)\n",
    b"var/lib/dpkg/info/a.list": b"/.\n/etc\n/etc/f\n/x/../etc/f\n",
    b"var/lib/dpkg/diversions": b"/etc/f\n/etc/g\na\n",
    b"var/lib/dpkg/status.d/c": b"Package: c\n",
    b"var/lib/dpkg/status.d/c.md5sums": b"0" * 32 + b"  etc/f\n",
    b"lib/apk/db/installed": APK,
    b"var/lib/pacman/local/a-1/desc": b"%NAME%\na\n\n%VERSION%\n1\n",
    b"var/lib/pacman/local/a-1/files": b"%FILES%\netc/\netc/f\n",
    b"var/lib/rpm/Packages.db": struct.pack("<4sIII", b"RpmP", 0, 1, 1).ljust(32, b"\0")
    + struct.pack("<4sIII", b"Slot", 1, 256, 4)
    + struct.pack("<4sIII", b"Slot", 0, 0, 0) * 253
    + struct.pack("<4sIII", b"BlbS", 1, 1, 24)
    + struct.pack(">II", 0, 16)
    + bytes(16),
    b"usr/lib/a-1.dist-info/RECORD": b'a.py,sha256=x,1\n../../../etc/f,,\n"q""q",,\n',
    b"srv/node_modules/a/package.json": b'{"version": "1"}',
    b"gems/specifications/a-1.gemspec": b"",
    b"gems/gems/a-1/a.rb": b"",
}


@settings(max_examples=examples(150), deadline=None)
@given(st.data())
def test_whatever_a_database_holds_the_rest_is_owned(data: st.DataObject) -> None:
    """Every path but directories has one owner, and no error gets out."""
    files = dict(DATABASES) | {b"etc/f": b"f"}
    for path in data.draw(st.lists(st.sampled_from(sorted(DATABASES)), min_size=1, max_size=3)):
        content = bytearray(files[path])
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content)))
            content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        files[path] = bytes(content)
    entries = {path: Entry(path, "file", 0o644, 0, 0, len(content), 1, 0) for path, content in files.items()}
    for path in files:
        while path := path.rpartition(b"/")[0]:
            entries[path] = Entry(path, "dir", 0o755, 0, 0, 0, 1, 0)
    entries[b"etc/loop"] = Entry(b"etc/loop", "link", 0o777, 0, 0, 4, 1, 0, link=b"loop")
    found = find_owners(ImageTree(entries.values(), {}, files.__getitem__))
    assert set(found.owners) == {*files, b"etc/loop"}
    assert all(warning.isprintable() for warning in found.warnings)
    assert all(owner.key.isprintable() and owner.version.isprintable() for owner in found.owners.values())


def test_a_database_that_leads_to_one_large_file_again_and_again_is_given_up() -> None:
    names = [b"p%d" % number for number in range(100)]
    paths = [b"var/lib/dpkg/info/%b.list" % name for name in names]
    entries = [Entry(path, "file", 0o644, 0, 0, 1 << 28, 100, 0) for path in paths]
    status = b"".join(b"Package: %b\n\n" % name for name in names)
    entries.append(Entry(b"var/lib/dpkg/status", "file", 0o644, 0, 0, len(status), 1, 0))
    for path in (b"var", b"var/lib", b"var/lib/dpkg", b"var/lib/dpkg/info"):
        entries.append(Entry(path, "dir", 0o755, 0, 0, 0, 1, 0))
    read: list[bytes] = []

    def content(path: bytes) -> bytes:
        read.append(path)
        return status if path.endswith(b"status") else b"/etc/f\n"

    (warning,) = find_owners(ImageTree(entries, {}, content)).warnings
    assert "databases of the image are larger than" in warning
    assert len(read) < 10
