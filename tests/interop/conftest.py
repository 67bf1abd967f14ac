"""Real input for the interop tests: a debootstrapped Debian 12, made once and kept out of git."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.worker.cli.main import main
from tests.catalog.registry import Registry
from tests.debian import bootstrap

CACHE = Path(__file__).resolve().parents[2] / ".cache"
SUITE = "bookworm"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Exclude the other processes of pytest while ``name`` is made in the cache."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def debian() -> Path:
    """A slim ``debootstrap --variant=minbase`` tree. Read only: copy it before changing anything."""
    tree = CACHE / f"{SUITE}-slim"
    with alone(tree.name):
        if not tree.exists():
            if os.geteuid() != 0:
                pytest.skip("needs root: debootstrap, which keeps its tree in .cache")
            bootstrap(SUITE, tree, slim=True)
    return tree


@pytest.fixture
def debian_copy(debian: Path, tmp_path: Path) -> Path:
    """A copy of the tree that the test may change."""
    copy = tmp_path / "debian"
    subprocess.run(["cp", "-a", "--reflink=auto", str(debian), str(copy)], check=True)
    return copy


@pytest.fixture(scope="session")
def debian_layout(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with the tree as the image ``deb``, built by the command line. Read only."""
    layout = tmp_path_factory.mktemp("debian") / "store"
    for command in (
        ("init", "--layout", str(layout)),
        ("build", "--rootfs", str(debian), "--image", f"{layout}:deb", "--compress", "gzip"),
    ):
        subprocess.run(["layerfarm", *command], env=no_farm(), stdin=subprocess.DEVNULL, check=True)
    return layout


@pytest.fixture
def debian_store(debian_layout: Path, tmp_path: Path) -> Path:
    """A copy of that layout, ``store``, that the test may change."""
    copy = tmp_path / "store"
    subprocess.run(["cp", "-a", "--reflink=auto", str(debian_layout), str(copy)], check=True)
    return copy


@pytest.fixture
def registry(program: Callable[[str], str], tmp_path: Path) -> Iterator[Registry]:
    """An empty registry, for skopeo."""
    program("skopeo")
    with Registry(tmp_path / "registry", program("docker-registry")) as running:
        yield running


@pytest.fixture
def origin(tmp_path: Path) -> Layout:
    """An empty layout."""
    return Layout.create(tmp_path / "origin")


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program, without any farm configured, and return its output; fail with its stderr."""

    def call(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or tmp_path,
            env=no_farm() | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return call


def no_farm() -> dict[str, str]:
    """Return the environment without any setting of layerfarm."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}


Layerfarm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def layerfarm(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Layerfarm:
    """Run the command line in this process, without any farm configured; its exit code, stdout and stderr."""
    for name in [name for name in os.environ if name.startswith("LAYERFARM_")]:
        monkeypatch.delenv(name)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call
