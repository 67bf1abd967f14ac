"""The container image of a release: a debootstrap and the wheel, built by layerfarm on an embedded farm.

Needs root: debootstrap installs packages in a chroot, and crun runs the result. Two builds from the same packages have
one digest: everything that tells the day or the machine is removed or replaced by :func:`clean`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from packaging.markers import Marker

from layerfarm.jobs.flows.requests import BuildRequest, HistoryOptions, ImageRef, ImageResult, LayerOptions
from layerfarm.worker.embedded import EmbeddedFarm
from tests import crun
from tests.debian import ALONE, DOCUMENTATION, bootstrap, remove
from tests.locks import pins
from tests.release.artifacts import LOCKS, ROOT, pack

PACKAGES: Final = ("python3", "skopeo", "ca-certificates", "tini")
HOME: Final = "opt/layerfarm"
UID: Final = 10001
_SCRIPT: Final = """\
#!/opt/layerfarm/bin/python
import sys

from layerfarm.worker.cli.__main__ import program

sys.exit(program())
"""
_ONLY_TO_BUILD: Final = ("setuptools",)
"""Locked packages that the image does not need."""
_REMOVED: Final = (
    *("var/log/*", "var/cache/apt/*", "var/cache/ldconfig/*", "var/cache/debconf/*-old", "var/lib/apt/lists/*"),
    *("var/lib/dpkg/*-old", "var/lib/dpkg/lock*", "var/backups/*", "etc/*-", "etc/.pwd.lock"),
    *("etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/catalog"),
    *("etc/apt/apt.conf.d/*proxy*", "tmp/*", "var/tmp/*", "run/*", "root/.cache", "debootstrap"),
    *DOCUMENTATION,
)
_CONFIG: Final = (
    f"--config.user={UID}:{UID}",
    "--config.workingdir=/var/lib/layerfarm",
    "--config.env=PATH=/opt/layerfarm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "--config.env=PYTHONDONTWRITEBYTECODE=1",
    "--config.env=LAYERFARM_METRICS=:9464",
    "--config.exposedports=9464/tcp",
    "--config.stopsignal=SIGTERM",
    *("--config.entrypoint=tini", "--config.entrypoint=--", "--config.entrypoint=layerfarm"),
    "--config.cmd=worker",
    "--no-history",
)
"""As in deploy/Dockerfile, which also has a health check: an OCI image has none."""


def lacking() -> list[str]:
    """Return the rights and programs that this machine lacks to make and run the image."""
    programs = [name for name in ("debootstrap", "crun") if shutil.which(name) is None]
    return (["root"] if os.geteuid() != 0 else []) + programs


def write(output: Path, wheel: Path, epoch: int, suite: str, mirror: str | None) -> str:
    """Write the image as an OCI archive into ``output``, and run it; return its digest."""
    number = version("layerfarm")
    with tempfile.TemporaryDirectory(prefix="layerfarm-image-", dir="/var/tmp") as directory:
        place = Path(directory)
        rootfs = place / "rootfs"
        bootstrap(suite, rootfs, archive=(mirror,) if mirror else ())
        # Not debootstrap's --include: it takes the first of alternative dependencies, and cannot configure skopeo's.
        apt = ["apt-get", "-o", "Acquire::Check-Valid-Until=false", "install", "-y", "-qq", "--no-install-recommends"]
        noninteractive = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        command = [*ALONE, "chroot", str(rootfs), *apt, *PACKAGES]
        subprocess.run(command, env=noninteractive, check=True, stdout=subprocess.DEVNULL)
        install(rootfs, wheel)
        clean(rootfs, epoch)
        digest = build(rootfs, place / "store", number, epoch)
        run(place / "store", number, place / "bundle")
        shutil.rmtree(place / "store/.layerfarm")
        # As `skopeo copy oci-archive:…` reads it.
        pack(place / "store", output / f"layerfarm-{number}-image.tar", epoch, prefix="")
    return digest


def install(rootfs: Path, wheel: Path) -> None:
    """Install the wheel and the locked packages into an environment of ``rootfs``, for its Python."""
    in_tree = [*ALONE, "chroot", str(rootfs)]
    subprocess.run([*in_tree, "python3", "-m", "venv", "--without-pip", f"/{HOME}"], check=True)
    show = "import platform; print(platform.python_version())"
    done = subprocess.run([*in_tree, "python3", "-c", show], check=True, capture_output=True, text=True)
    full = done.stdout.strip()
    minor = full.rpartition(".")[0]
    lib = rootfs / HOME / f"lib/python{minor}/site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(lib)]
    pip += ["--python-version", minor, "--only-binary=:all:", "--upgrade"]
    pinned = rootfs.with_name("requirements.txt")
    pinned.write_text(pinned_for(full))
    subprocess.run([*pip, "--require-hashes", f"--requirement={pinned}"], check=True)
    subprocess.run([*pip, str(wheel)], check=True)
    # Scripts and their records have this machine's Python; the record of an installed file has its path.
    shutil.rmtree(lib / "bin", ignore_errors=True)
    for record in lib.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if not re.search(r"(^|/)(bin/|direct_url\.json)", line)))
    for path in lib.glob("*.dist-info/direct_url.json"):
        path.unlink()
    script = rootfs / HOME / "bin/layerfarm"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    useradd = ["useradd", "--system", "--uid", str(UID), "--user-group", "--create-home"]
    subprocess.run([*in_tree, *useradd, "--home-dir", "/var/lib/layerfarm", "layerfarm"], check=True)


def pinned_for(python: str) -> str:
    """Return the pins for a version of Python, without markers: pip evaluates them for the Python that runs it."""
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python}
    locked = "".join((ROOT / lock).read_text() for lock in LOCKS)
    found = []
    for pin, text in pins(locked).items():
        marker = re.match(r"[^;\n]*;\s*(.*?)\s*\\?$", text.splitlines()[0])
        if pin.partition("==")[0] not in _ONLY_TO_BUILD and (marker is None or Marker(marker[1]).evaluate(environment)):
            found.append(" ".join([pin, *re.findall(r"--hash=\S+", text)]))
    return "\n".join(found) + "\n"


def clean(rootfs: Path, epoch: int) -> None:
    """Remove or replace what differs between two builds: logs, caches, names of the machine, byte code, dates."""
    remove(rootfs, *_REMOVED)
    for path in sorted(rootfs.rglob("__pycache__")):
        shutil.rmtree(path)
    (rootfs / "etc/machine-id").touch()
    (rootfs / "etc/hostname").write_text("layerfarm\n")
    shadow = rootfs / "etc/shadow"
    # The third field is the day of the last change of the password.
    days = re.sub(r"^([^:]*:[^:]*:)\d+", rf"\g<1>{epoch // 86400}", shadow.read_text(), flags=re.MULTILINE)
    shadow.write_text(days)


def build(rootfs: Path, store: Path, number: str, epoch: int) -> str:
    """Build the image on an embedded farm, set its configuration, and return the digest of its manifest."""
    layerfarm("init", "--layout", store)
    history = HistoryOptions(author="layerfarm", created_by=f"debootstrap, layerfarm {number}")
    options = LayerOptions(compress="gzip", history=history, source_date_epoch=epoch)
    image = ImageRef(store=store, tag=number)
    with EmbeddedFarm(roots=[rootfs], stores=[store]) as own, own.farm() as farm:
        built = farm.submit(BuildRequest(rootfs=rootfs, image=image, layer=options)).result()
    assert isinstance(built, ImageResult)
    layerfarm("config", "--image", f"{store}:{number}", *_CONFIG, epoch=epoch)
    stat = json.loads(layerfarm("stat", "--json", "--image", f"{store}:{number}"))
    layerfarm("gc", "--layout", store, "--grace", "0")
    return str(stat["manifest"]["descriptor"]["digest"])


def run(store: Path, number: str, bundle: Path) -> None:
    """Run the image with crun: it builds and unpacks an image on a farm of its own."""
    layerfarm("unpack", "--image", f"{store}:{number}", bundle)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["process"]["terminal"] = False
    demo = ["demo", "--rootfs", "/opt/layerfarm/lib", "--store", "/tmp/store"]
    config["process"]["args"] = ["tini", "--", "layerfarm", *demo]
    path.write_text(json.dumps(config))
    command = ["crun", *crun.FLAGS, "run", "--bundle", str(bundle), f"layerfarm-release-{os.getpid()}"]
    done = subprocess.run(
        crun.with_cgroups(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "trees agree" in done.stdout, f"{done.stdout}{done.stderr}"


def layerfarm(*args: str | Path, epoch: int = 0) -> str:
    """Run the command of this checkout, without a farm; return what it prints."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
    command: Sequence[str] = [sys.executable, "-m", "layerfarm.worker.cli", *map(str, args)]
    environment = plain | {"SOURCE_DATE_EPOCH": str(epoch)}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
