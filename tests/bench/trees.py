"""The trees that are measured, made of real files and kept between runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import kinds
from tests.debian import bootstrap

SOURCES = (
    "/usr/share",
    "/usr/include",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/bin",
    "/usr/lib/gcc",
    "/usr/lib/python3",
    "/usr/lib/jvm",
    "/var/lib",
    "/usr/lib",
)
PYTHON_PACKAGES = (
    "botocore",
    "sympy",
    "django",
    "pandas",
    "scipy",
    "babel",
    "plotly",
    "sphinx",
    "matplotlib",
    "networkx",
)
NODE_PACKAGES = ("@mui/icons-material@6", "date-fns@4", "rxjs@7", "typescript@5", "lodash@4", "core-js@3")
MANY_ENTRIES = 120_000
MANY_BYTES = 2 << 30
LARGE_FILES = 20
LARGE_BYTES = 500 << 20
MILLION = 1_000_000


@dataclass(frozen=True)
class Tree:
    """A tree below the cache directory."""

    name: str
    make: Callable[[Path], str | None]
    """Returns the packages that it is made of, a line each, if they are known."""


def minbase(path: Path) -> None:
    """Debian 12 as debootstrap makes it: about 7,000 entries, 200 MB."""
    bootstrap("bookworm", path)


def many(path: Path) -> None:
    """At least 120,000 mostly small files, 2 GiB: what this Debian, PyPI and npm have, again until it suffices."""
    path.mkdir()
    entries = size = 0
    for add in (_python_packages, _node_packages, *(_copies_of_this_machine(turn) for turn in range(10))):
        for part in add(path):
            count, nbytes = census(part)
            entries += count
            size += nbytes
            if entries >= MANY_ENTRIES and size >= MANY_BYTES:
                return


def _python_packages(path: Path) -> Iterator[Path]:
    target = path / "site-packages"
    quiet_pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _installed([*quiet_pip, "--no-compile", "--target", target, *PYTHON_PACKAGES], "PyPI")
    if target.is_dir():
        yield target


def _node_packages(path: Path) -> Iterator[Path]:
    target = path / "node"
    quiet_npm = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
    _installed([*quiet_npm, "--prefix", target, *NODE_PACKAGES], "npm")
    if target.is_dir():
        yield target


def _installed(command: Sequence[str | Path], registry: str) -> None:
    """Say so where a registry gives nothing: the tree is then made of the rest, and its figures are others."""
    try:
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"bench: NO PACKAGES FROM {registry} IN THE TREE: {error}", file=sys.stderr)


def _copies_of_this_machine(turn: int) -> Callable[[Path], Iterator[Path]]:
    def add(path: Path) -> Iterator[Path]:
        for source in SOURCES:
            if Path(source).is_dir():
                copy = path / f"{turn}{source.replace('/', '-')}"
                subprocess.run(["cp", "-a", "--one-file-system", source, str(copy)], check=True)
                yield copy

    return add


def large(path: Path) -> None:
    """20 files of 500 MB: text, machine code and noise in turn, so that some compress and some do not."""
    large_files(path, LARGE_FILES, LARGE_BYTES)


def large_files(path: Path, count: int, size: int) -> None:
    """``count`` files of ``size`` bytes, as those of :func:`large`."""
    path.mkdir()
    kinds = [_content(_text()), _content(_code()), _content(_noise())]
    for number in range(count):
        content = kinds[number % len(kinds)]
        with (path / f"large-{number:02}").open("wb") as out:
            while (left := size - out.tell()) > 0:
                out.write(next(content)[:left])


def million(path: Path) -> None:
    """1,000,000 files of a few bytes, 1,000 to a directory."""
    tiny_files(path, MILLION)


def tiny_files(path: Path, count: int) -> None:
    """``count`` files, a multiple of 1,000, as those of :func:`million`."""
    for directory in range(count // 1000):
        here = path / f"{directory // 100:02}" / f"{directory:04}"
        here.mkdir(parents=True)
        fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
        for number in range(1000):
            file = os.open(f"{number:03}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
            os.write(file, b"%d.%d\n" % (directory, number))
            os.close(file)
        os.close(fd)


TREES = {f.__name__: Tree(f.__name__, f) for f in (minbase, many, large, million)}
TREES |= {name: Tree(name, make) for name, make in {**kinds.TUNED, **kinds.JUDGED}.items()}


def get(name: str, cache: Path) -> Path:
    """The tree of that name, made now if the cache does not hold it."""
    path = (cache / name).resolve()
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        packages = TREES[name].make(unfinished)
        if packages is not None:
            contents(path).write_text(packages)
        unfinished.rename(path)
    return path


def contents(path: Path) -> Path:
    """Return the file that lists the packages of a tree."""
    return path.with_name(f"{path.name}.contents")


def census(root: Path) -> tuple[int, int]:
    """Entries and bytes of regular files below ``root``."""
    entries = size = 0
    for _, count, nbytes in _sizes(root):
        entries += count
        size += nbytes
    return entries, size


def _sizes(root: Path) -> Iterator[tuple[str, int, int]]:
    for directory, directories, files in os.walk(root):
        sizes = (os.lstat(os.path.join(directory, name)).st_size for name in files)
        yield directory, len(directories) + len(files), sum(sizes)


def _content(pieces: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from pieces


def _text() -> list[bytes]:
    return _sample("/usr/share", (".txt", ".md", ".html", ".py", ".xml", ".json"))


def _code() -> list[bytes]:
    return _sample("/usr/lib", (".so", ".a", ".o")) or _sample("/usr/bin", ("",))


def _noise() -> list[bytes]:
    return [os.urandom(1 << 20) for _ in range(64)]


def _sample(root: str, endings: tuple[str, ...]) -> list[bytes]:
    """About 64 MiB of the files below ``root`` with those endings, in sorted order."""
    pieces: list[bytes] = []
    size = 0
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if name.endswith(endings) and path.is_file() and not path.is_symlink():
                pieces.append(path.read_bytes())
                size += len(pieces[-1])
                if size > 64 << 20:
                    return pieces
    return pieces
