"""Five kinds of trees, each twice: one to tune layerfarm with, one to judge it with.

A rule that was tuned with a tree says nothing of others by its figures for that tree: the choice of gzip's compressor
made 1.04 of umoci's blob of the tree that it was tuned with, and 1.13 of one of node_modules. So a measurement that is
to be believed is one of the trees of :data:`JUDGED`, and no constant of layerfarm is chosen with those.

Versions are pinned where the registry keeps old ones. Debian's archive does not: the file NAME.contents beside a tree
lists what it was made of. Files have the packages' times, or one time where those of the installation differ.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.debian import bootstrap, tidy

Command = Sequence[str | Path]
_TIME: Final = 1_700_000_000
"""mtime of files whose packages do not set it, in seconds."""


def _debian(suite: str, *included: str) -> Callable[[Path], str]:
    """Make a Debian of a suite, with these packages and those that they depend on."""

    def make(path: Path) -> str:
        bootstrap(suite, path, *([f"--include={','.join(included)}"] if included else []))
        tidy(path)
        return _output("dpkg-query", f"--root={path}", "--show")

    return make


def _python(*pinned: str) -> Callable[[Path], str]:
    """Make a site-packages of these wheels for one Python and one platform, so that every machine gets the same."""

    def make(path: Path) -> str:
        platform = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--platform")
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", *platform)
        pip = (sys.executable, "-m", "pip")
        _output(*pip, "install", *options, "manylinux2014_x86_64", "--target", path, *pinned)
        _one_time(path)
        return _output(*pip, "list", "--disable-pip-version-check", "--path", path, "--format=freeze")

    return make


def _node(*pinned: str) -> Callable[[Path], str]:
    """Make a node_modules of these packages and those that they depend on."""

    def make(path: Path) -> str:
        npm = ("npm", "--silent", "--prefix", path)
        _output(*npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock", *pinned)
        _one_time(path)
        listed = _output(*npm, "ls", "--all", "--parseable", "--long").splitlines()
        return "".join(f"{line.split(':')[1]}\n" for line in listed[1:])

    return make


def _packages(*names: str) -> Callable[[Path], str]:
    """Make a tree of the files of these Debian packages, without those that they depend on."""

    def make(path: Path) -> str:
        path.mkdir()
        with tempfile.TemporaryDirectory(prefix="debs-", dir=path.parent) as directory:
            _output("apt-get", "-qq", "download", *names, cwd=Path(directory))
            archives = sorted(Path(directory).glob("*.deb"))
            for archive in archives:
                _output("dpkg-deb", "--extract", archive, path)
            show = ("dpkg-deb", "--show", "--showformat=${Package} ${Version} ${Architecture}\n")
            return "".join(_output(*show, archive) for archive in archives)

    return make


TUNED: Final = {
    "debian": _debian("bookworm"),
    "python": _python(
        "botocore==1.35.80",
        "sympy==1.13.3",
        "django==5.1.4",
        "pandas==2.2.3",
        "scipy==1.14.1",
        "babel==2.16.0",
        "plotly==5.24.1",
        "sphinx==8.1.3",
        "matplotlib==3.10.0",
        "networkx==3.4.2",
    ),
    "node": _node(
        "@mui/icons-material@6.2.0",
        "date-fns@4.1.0",
        "rxjs@7.8.1",
        "typescript@5.7.2",
        "lodash@4.17.21",
        "core-js@3.39.0",
    ),
    "code": _packages("libllvm14", "libqt5webenginecore5", "gcc-12", "cpp-12", "openjdk-17-jre-headless", "libgtk-3-0"),
    "media": _packages(
        "fonts-noto-core", "gnome-backgrounds", "linux-doc-6.1", "adwaita-icon-theme", "manpages", "frozen-bubble-data"
    ),
}
JUDGED: Final = {
    "debian-judged": _debian("trixie", "nginx", "perl", "git", "vim", "python3-venv", "ca-certificates"),
    "python-judged": _python(
        "sqlalchemy==2.0.36",
        "scikit-learn==1.6.0",
        "kubernetes==31.0.0",
        "transformers==4.47.1",
        "twisted==24.11.0",
        "notebook==7.3.1",
        "azure-mgmt-network==28.1.0",
        "pygments==2.18.0",
        "nltk==3.9.1",
        "ansible==11.1.0",
    ),
    "node-judged": _node(
        "webpack@5.97.1",
        "eslint@9.17.0",
        "express@4.21.2",
        "react-icons@5.4.0",
        "three@0.171.0",
        "echarts@5.5.1",
        "aws-sdk@2.1692.0",
        "highlight.js@11.11.0",
    ),
    "code-judged": _packages(
        "libreoffice-core", "docker.io", "postgresql-15", "mariadb-server-core", "libwebkit2gtk-4.1-0"
    ),
    "media-judged": _packages(
        "fonts-noto-cjk",
        "plasma-workspace-wallpapers",
        "papirus-icon-theme",
        "python3.11-doc",
        "postgresql-doc-15",
        "libreoffice-help-en-us",
        "sound-theme-freedesktop",
    ),
}


def _one_time(path: Path) -> None:
    """Set one mtime on all entries, as installers leave the time of the installation on some."""
    for directory, _, names in os.walk(path, topdown=False):
        for entry in (*(os.path.join(directory, name) for name in names), directory):
            os.utime(entry, (_TIME, _TIME), follow_symlinks=False)


def _output(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return done.stdout
