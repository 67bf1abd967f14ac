"""Build a spec's images as a CI farm does, with layerfarm: a base, packages on it, the application on those.

Nothing is carried over from one day to the next: each day's base is bootstrapped, and each image rebuilt from it.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import (
    BuildRequest,
    HistoryOptions,
    ImageRef,
    LayerOptions,
    RepackRequest,
    UnpackRequest,
)
from layerfarm.jobs.image.documents import timestamp
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from tests.debian import ALONE, bootstrap, tidy

from .archive import Archive
from .databases import apk_tree, rpm_tree
from .spec import Repository, Spec

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "catalog"
FIRST_DAY = 1_700_000_000
"""Seconds: the time that the first images say they were made at."""
WEEK = 7 * 86400
_POLICY = Policy(shards=2, threads=2)


def images_of(spec: Spec) -> list[str]:
    """The tags of :func:`catalog`'s layout, ``repository:tag``, each repository's in order of time."""
    own = [f"{r.name}:{day + 1}.0" for r in spec.repositories for day in range(spec.days)]
    foreign = [f"other/{kind}:{day + 1}.0" for kind in ("apk", "rpm") for day in range(spec.foreign_days)]
    return own + foreign


def catalog(spec: Spec) -> Path:
    """The layout that holds every image of the spec; made once and kept. Copy it before changing anything."""
    place = CACHE / spec.name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # several pytest workers, one catalog
        if not (place / "images").exists():
            _build(spec, place)
    return place / "images"


def _build(spec: Spec, place: Path) -> None:
    unfinished = place / "images.unfinished"
    if not unfinished.exists():
        Layout.create(unfinished)
    there = set(Layout.open(unfinished).tags())
    for suite in spec.suites:
        archive = Archive(place / suite, suite, spec.days)
        archive.prepare(spec.packages_of(suite))
        for day in range(spec.days):
            todo = [r for r in spec.repositories if r.suite == suite and f"{r.name}:{day + 1}.0" not in there]
            if todo:
                base = _base(unfinished, archive, day, place)
                for repository in todo:
                    _say(f"{repository.name} of day {day}")
                    _image(unfinished, archive, base, repository, day, place)
    for kind, make in (("apk", apk_tree), ("rpm", rpm_tree)):
        for day in range(spec.foreign_days):
            if f"other/{kind}:{day + 1}.0" not in there:
                _say(f"{kind} of day {day}")
                with _scratch(place) as scratch:
                    make(scratch / "rootfs", day)
                    _from_tree(unfinished, scratch / "rootfs", f"other/{kind}:{day + 1}.0", day)
    for suite in spec.suites:
        for day in range(spec.days):
            Layout.open(unfinished).untag(f"base/{suite}-{day}")
    unfinished.rename(place / "images")


# --- the base ------------------------------------------------------------------------------------


def _base(layout: Path, archive: Archive, day: int, place: Path) -> str:
    tag = f"base/{archive.suite}-{day}"
    if Layout.open(layout).find(tag):
        return tag
    _say(f"base of {archive.suite} on day {day}")
    with _scratch(place) as scratch:
        rootfs = scratch / "rootfs"
        repository = archive.repository(day)
        bootstrap(archive.suite, rootfs, "--no-check-gpg", archive=(f"file://{repository}",), slim=True)
        (rootfs / "etc/apt/sources.list").write_text(f"deb http://archive.example/debian {archive.suite} main\n")
        _from_tree(layout, rootfs, tag, day)
    return tag


def _from_tree(layout: Path, rootfs: Path, tag: str, day: int) -> None:
    local.run(BuildRequest(rootfs=rootfs, image=ImageRef(store=layout, tag=tag), layer=_layer(day, "base")), _POLICY)


# --- packages and the application ----------------------------------------------------------------


def _image(layout: Path, archive: Archive, base: str, repository: Repository, day: int, place: Path) -> None:
    tag = f"{repository.name}:{day + 1}.0"
    with _scratch(place) as scratch:
        bundle = scratch / "bundle"
        local.run(UnpackRequest(image=ImageRef(store=layout, tag=base), bundle=bundle), _POLICY)
        rootfs = bundle / "rootfs"
        _install(rootfs, archive, repository.packages, day)
        _repack(layout, bundle, tag, day, "packages")
        _application(rootfs / "srv/app", repository, day)
        if repository.wheels:
            _wheels(rootfs, repository.wheels[min(day, len(repository.wheels) - 1)])
        _repack(layout, bundle, tag, day, "application")


_INSTALL = """
mount --bind "$ARCHIVE" "$ROOTFS/mnt"
mount -t proc proc "$ROOTFS/proc"
PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
export PATH DEBIAN_FRONTEND LC_ALL
unset TMPDIR  # a directory outside the root
apt="chroot $ROOTFS apt-get -qq -y -o Dir::Etc::sourcelist=/mnt/day-$DAY.list -o APT::Sandbox::User=root"
$apt update
$apt --no-install-recommends install "$@"
"""


def _install(rootfs: Path, archive: Archive, packages: tuple[str, ...], day: int) -> None:
    (archive.directory / f"day-{day}.list").write_text(
        f"deb [trusted=yes] file:///mnt/day-{day} {archive.suite} main\n"
    )
    policy = rootfs / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    with (rootfs.parent / "install.log").open("wb") as log:
        done = subprocess.run(
            [*ALONE, "sh", "-e", "-c", _INSTALL, "install", *packages],
            env=os.environ | {"ROOTFS": str(rootfs), "ARCHIVE": str(archive.directory), "DAY": str(day)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    assert done.returncode == 0, (rootfs.parent / "install.log").read_text()[-2000:]
    policy.unlink()
    tidy(rootfs)


def _application(directory: Path, repository: Repository, day: int) -> None:
    """Sources of which every build has all with the time of its checkout, and some with new content."""
    directory.mkdir(parents=True)
    for number in range(repository.app_files):
        changes = random.Random(f"{repository.name} {number}")
        version = sum(changes.random() < 0.2 for _ in range(day))
        words = random.Random(f"{repository.name} {number} {version}")
        text = " ".join(f"{words.choice(_WORDS)}{words.randrange(1000)}" for _ in range(2500))
        (directory / f"module{number:03}.py").write_text(text)


_WORDS = ("return", "value", "self", "index", "request", "def", "import", "order", "count", "handler")


def _wheels(rootfs: Path, pinned: tuple[str, ...]) -> None:
    """As ``pip install`` in the image does: whole and their dependencies, with RECORD files."""
    target = rootfs / "usr/local/lib/python3.11/dist-packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    _run(*command, "--only-binary=:all:", "--python-version", "3.11", "--target", target, *pinned)


def _repack(layout: Path, bundle: Path, tag: str, day: int, what: str) -> None:
    request = RepackRequest(
        bundle=bundle, image=ImageRef(store=layout, tag=tag), layer=_layer(day, what), refresh_bundle=True
    )
    local.run(request, _POLICY)


def _layer(day: int, what: str) -> LayerOptions:
    created = timestamp(FIRST_DAY + day * WEEK)
    # As docker build and most registries have them: gzip, a little smaller than layerfarm's default.
    return LayerOptions(compress="gzip", level=6, history=HistoryOptions(created=created, created_by=what))


@contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    directory = place / f"scratch-{os.getpid()}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
