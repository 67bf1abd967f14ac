"""``make release``: the artifacts, their bytes, and the tree of the image before it is built."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.locks import pins
from tests.release import artifacts, image

EPOCH = 1_700_000_000


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_artifacts_are_complete_and_the_same_in_two_runs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        artifacts.write(tmp_path / name, EPOCH)
    made = digests(tmp_path / "one")
    assert made == digests(tmp_path / "two")
    ends = ("-py3-none-any.whl", ".tar.gz", "-man.tar.gz", "-site.tar.gz", ".cdx.json")
    assert len(made) == len(ends) and all(any(name.endswith(end) for name in made) for end in ends)
    with tarfile.open(next((tmp_path / "one").glob("*-man.tar.gz"))) as archive:
        assert {Path(name).suffix for name in archive.getnames()} == {".1"}
    with tarfile.open(next((tmp_path / "one").glob("*-site.tar.gz"))) as archive:
        assert any(name.endswith("/index.html") for name in archive.getnames())


def test_sbom_names_every_pinned_package_with_its_hashes(tmp_path: Path) -> None:
    wheel = tmp_path / "layerfarm.whl"
    wheel.write_bytes(b"wheel")
    locked = "".join((artifacts.ROOT / lock).read_text() for lock in artifacts.LOCKS)
    found = artifacts.sbom(locked, wheel, EPOCH)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")
    assert [f"{each['name']}=={each['version']}" for each in found["components"]] == sorted(pins(locked))
    assert all(len(digest["content"]) == 64 for each in found["components"] for digest in each["hashes"])
    own = found["metadata"]["component"]["hashes"]
    assert own == [{"alg": "SHA-256", "content": hashlib.sha256(b"wheel").hexdigest()}]
    assert json.dumps(found) == json.dumps(artifacts.sbom(locked, wheel, EPOCH))


def test_archive_has_neither_times_nor_owners_nor_the_umask_of_its_files(tmp_path: Path) -> None:
    for name, mode, time in (("a", 0o600, 1), ("b", 0o644, 2)):
        (tmp_path / name / "tree/d").mkdir(parents=True)
        (tmp_path / name / "tree/d/f").write_text("content")
        (tmp_path / name / "tree/link").symlink_to("d/f")
        (tmp_path / name / "tree/d/f").chmod(mode)
        os.utime(tmp_path / name / "tree/d/f", (time, time))
        artifacts.pack(tmp_path / name / "tree", tmp_path / f"{name}.tar.gz", EPOCH)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_trees_of_two_days_and_machines_are_the_same_when_they_are_clean(tmp_path: Path) -> None:
    found = []
    for day, host in ((19700, "one"), (20000, "two")):
        rootfs = tmp_path / host
        for name, content in {
            "etc/hostname": host,
            "etc/resolv.conf": host,
            "etc/machine-id": host,
            "etc/passwd-": host,
            "etc/shadow": f"root:*:{day}:0:99999:7:::\nlayerfarm:!:{day}::::::\n",
            "var/log/dpkg.log": host,
            "var/cache/ldconfig/aux-cache": host,
            "usr/lib/python3/__pycache__/x.pyc": host,
            "usr/share/doc/p/copyright": "free",
            "usr/share/doc/p/changelog.gz": host,
        }.items():
            (rootfs / name).parent.mkdir(parents=True, exist_ok=True)
            (rootfs / name).write_text(content)
        image.clean(rootfs, EPOCH)
        files = sorted(path for path in rootfs.rglob("*") if path.is_file())
        found.append({str(path.relative_to(rootfs)): path.read_text() for path in files})
    assert found[0] == found[1]
    assert found[0]["etc/shadow"].startswith("root:*:19675:0:") and found[0]["etc/machine-id"] == ""
    assert "usr/share/doc/p/copyright" in found[0] and "usr/share/doc/p/changelog.gz" not in found[0]


def test_missing_rights_and_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert image.lacking() == ["root", "debootstrap", "crun"]


def test_pins_of_the_image_are_those_for_its_python() -> None:
    old, new = (image.pinned_for(python).splitlines() for python in ("3.11.2", "3.11.7"))
    names = [{line.partition("==")[0] for line in lines} for lines in (old, new)]
    # redis needs it below 3.11.3.
    assert names[0] - names[1] == {"async-timeout"} and "celery" in names[1] and "setuptools" not in names[0]
    assert all("--hash=sha256:" in line and ";" not in line for line in old)
