"""Create Debian trees with debootstrap, atomically; its processes end with their caller.

A slim tree lacks what Debian's slim images lack: a third of the entries and more than half of the bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

ALONE: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""Prefix of a command that mounts and runs programs in a tree: killing it, by a timeout too, kills all of them."""

_SLIM: Final = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
force-unsafe-io
"""
"""The files that dpkg does not install; and no fsync for every file of a layer."""

DOCUMENTATION: Final = tuple(f"usr/share/{each}" for each in ("doc/*/*", "man/*", "info/*", "locale/*"))
"""Patterns of what those rules leave out, without :data:`KEPT`."""
KEPT: Final = ("copyright", "locale.alias")


def bootstrap(suite: str, tree: Path, *options: str, archive: tuple[str, ...] = (), slim: bool = False) -> None:
    """Create ``tree``, a minbase of ``suite``.

    Parameters:
        options: further ones of debootstrap.
        archive: address of the mirror, and the script for a suite that debootstrap does not know.
        slim: leave out package lists, archives, translations and documentation.
    """
    unfinished = tree.with_name(f"{tree.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [*ALONE, "debootstrap", "--variant=minbase", *options, suite, str(unfinished), *archive]
    # dpkg would sync every file: the tree is used only once it is complete.
    quick = os.environ | {"DPKG_FORCE": "unsafe-io"}
    done = subprocess.run(command, env=quick, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    if slim:
        (unfinished / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
        remove(unfinished, *DOCUMENTATION)
        tidy(unfinished)
    unfinished.rename(tree)


def tidy(rootfs: Path) -> None:
    """Remove the package lists and archives, as every Dockerfile does at the end of its RUN line."""
    remove(rootfs, "var/lib/apt/lists/*", "var/cache/apt/*.bin", "var/cache/apt/archives/*.deb")


def remove(rootfs: Path, *patterns: str) -> None:
    """Remove the files and directories that match, without those of :data:`KEPT`."""
    for pattern in patterns:
        for path in sorted(rootfs.glob(pattern)):
            if path.name not in KEPT:
                # Gone already if its directory has two names, as those of documentation have.
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
