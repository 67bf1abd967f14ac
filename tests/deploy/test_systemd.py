"""deploy/systemd: systemd reads it, finds it closed enough, and what it leaves open is enough for the work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfarm.worker.settings import load_settings

MOST_EXPOSED = 3.0


def installed(deploy: Path, name: str, directory: Path) -> Path:
    """A unit as installed on a machine whose layerfarm is this one."""
    text = (deploy / "systemd" / name).read_text()
    command = Path(sys.executable).with_name("layerfarm")
    text = re.sub(
        "^Documentation=.*\n", "", text.replace("/opt/layerfarm/bin/layerfarm", str(command)), flags=re.MULTILINE
    )
    path = directory / name
    path.write_text(text)
    return path


@pytest.fixture
def unit(deploy: Path, tmp_path: Path) -> Path:
    """The worker's unit."""
    return installed(deploy, "layerfarm-worker@.service", tmp_path)


@pytest.fixture
def catalog_unit(deploy: Path, tmp_path: Path) -> Path:
    """The unit of a server of catalogs."""
    return installed(deploy, "layerfarm-catalog@.service", tmp_path)


def test_systemd_reads_the_units_and_the_drop_in(
    unit: Path, catalog_unit: Path, deploy: Path, program: Callable[[str], str]
) -> None:
    shutil.copytree(deploy / "systemd/redis-server.service.d", unit.parent / "redis-server.service.d")
    shutil.copy("/lib/systemd/system/redis-server.service", unit.parent)
    done = subprocess.run(
        [
            program("systemd-analyze"),
            "verify",
            unit.with_name("layerfarm-worker@1.service"),
            catalog_unit.with_name("layerfarm-catalog@web.service"),
            "redis-server.service",
        ],
        cwd=unit.parent,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
        capture_output=True,
        text=True,
    )
    ours = [line for line in done.stderr.splitlines() if "layerfarm" in line or "redis" in line]
    assert (done.returncode, ours) == (0, [])


def test_redis_may_read_the_files_that_the_drop_in_and_its_configuration_name(deploy: Path) -> None:
    closed = [
        line.split()[1]
        for line in (deploy / "systemd/tmpfiles.d/layerfarm.conf").read_text().splitlines()
        if line.startswith("d ") and not int(line.split()[2], 8) & 0o005
    ]
    (drop_in,) = (deploy / "systemd/redis-server.service.d").iterdir()
    paths = re.findall(r"^ExecStart=\S+ (\S+)", drop_in.read_text(), re.MULTILINE)
    paths += re.findall(r"^#\S*file (/\S+)", (deploy / "redis/redis.conf").read_text(), re.MULTILINE)
    assert closed == ["/etc/layerfarm"] and len(paths) == 5
    assert [path for path in paths if str(Path(path).parent) in closed] == []


def test_the_units_expose_little(unit: Path, catalog_unit: Path, program: Callable[[str], str]) -> None:
    for path in (unit, catalog_unit):
        done = subprocess.run(
            [program("systemd-analyze"), "security", "--offline=yes", "--no-pager", path],
            capture_output=True,
            text=True,
        )
        overall = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
        assert overall is not None, done.stderr
        assert float(overall[1]) <= MOST_EXPOSED


def test_the_rights_of_the_unit_are_enough_for_owners_modes_devices_and_capabilities(
    unit: Path, debian: Path, tmp_path: Path, program: Callable[[str], str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    line = next(line for line in unit.read_text().splitlines() if line.startswith("CapabilityBoundingSet="))
    wanted = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in line.partition("=")[2].split())
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", debian / "etc", tree], check=True)
    (tree / "of somebody").write_text("x")
    os.chown(tree / "of somebody", 1234, 4321)
    (tree / "of somebody").chmod(0o6700)
    os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
    (tree / "ping").write_text("x")
    # cap_net_raw=ep, as setcap writes it (VFS_CAP_REVISION_2).
    os.setxattr(tree / "ping", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))

    held = [program("setpriv"), f"--bounding-set=-all,{wanted}", f"--inh-caps=-all,{wanted}", "--no-new-privs"]

    def restricted(*command: str | Path) -> None:
        layerfarm = Path(sys.executable).with_name("layerfarm")
        subprocess.run([*held, layerfarm, *command], cwd=tmp_path, check=True, capture_output=True)

    restricted("init", "--layout", "store")
    restricted("build", "--rootfs", tree, "--image", "store:a")
    restricted("unpack", "--image", "store:a", "bundle")
    differences = subprocess.run(
        [Path(sys.executable).with_name("layerfarm"), "diff", "--json", tree, "bundle"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (differences.returncode, differences.stderr) == (0, "")
    assert (tmp_path / "bundle/rootfs/of somebody").stat().st_uid == 1234
    assert os.getxattr(tmp_path / "bundle/rootfs/ping", "security.capability")


def test_the_example_settings_are_settings(deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (deploy / "systemd/worker.env.example").read_text()
    for line in text.splitlines():
        name, equals, value = line.removeprefix("#").partition("=")
        if equals and name.startswith("LAYERFARM_"):
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.roots == (Path("/srv/rootfs"),)
    drain = float(re.findall(r"TimeoutStopSec=(\d+)", (deploy / "systemd/layerfarm-worker@.service").read_text())[0])
    assert settings.drain + 10 <= drain


def test_tmpfiles_makes_the_directories(deploy: Path, tmp_path: Path, program: Callable[[str], str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the directories are root's")
    configuration = deploy / "systemd/tmpfiles.d/layerfarm.conf"
    subprocess.run([program("systemd-tmpfiles"), "--create", f"--root={tmp_path}", configuration], check=True)
    made = {path: (tmp_path / path).stat().st_mode & 0o777 for path in ("etc/layerfarm", "srv/rootfs", "srv/oci")}
    assert made == {"etc/layerfarm": 0o750, "srv/rootfs": 0o755, "srv/oci": 0o755}


def test_json_logs_fit_the_journal(capfd: pytest.CaptureFixture[str]) -> None:
    """One object a line: what journald takes for one message."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from layerfarm.worker.monitoring.logs import configure_logs as c; c(); import structlog as s;"
            " s.get_logger().info('a\\nb', job='x')",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stderr)["event"] == "a\nb" and done.stderr.count("\n") == 1
