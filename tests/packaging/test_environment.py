"""deploy/environment.py: locks are installed and not resolved, and an error is one line."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pip
import pytest

from tests.locks import CORE, LOCKS, ROOT, pins

SCRIPT = "deploy/environment.py"
INSTALLED = "layerfarm-installed.json"
FAR = "9999.0"
"""Version of a release that comes after every pin."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose locks pin what :func:`index` holds: the real names, versions, markers and requirements."""
    clone = tmp_path_factory.mktemp("checkout") / "layerfarm"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
    for path in (SCRIPT, "Makefile", "pyproject.toml"):  # as they are now, committed or not
        shutil.copy(ROOT / path, clone / path)
    index = clone.parent / "index"
    index.mkdir()
    for lock in LOCKS:
        text = lock.read_text()
        for pin, whole in pins(text).items():
            name, _, version = pin.partition("==")
            wheel(index, name, FAR, ["no-such-package-anywhere", "layerfarm==0.0.0"])
            made = wheel(index, name, version, requirements(name, version))
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            text = text.replace(whole, re.sub(r"\\\n(?s:.*)", rf"\\\n    --hash=sha256:{digest}\n", whole))
        (clone / lock.relative_to(ROOT)).write_text(text)
    return clone


def requirements(name: str, version: str) -> list[str]:
    """Dependencies of the real package, extras included; none for one that this Python does without."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return []
    assert found.version == version, "the environment is not that of the locks"
    extras = [f"Provides-Extra: {extra}" for extra in found.metadata.get_all("Provides-Extra") or []]
    return [*(found.requires or []), *extras]


def wheel(index: Path, name: str, version: str, requires: list[str]) -> Path:
    """A wheel with nothing in it but its metadata; setuptools is whole, for it builds layerfarm."""
    stem = f"{name.replace('-', '_')}-{version}"
    lines = [line if line.startswith("Provides-Extra") else f"Requires-Dist: {line}" for line in requires]
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""]
    files = {
        f"{stem}.dist-info/METADATA": "\n".join(head).encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "setuptools" and version != FAR:
        for path in metadata.distribution(name).files or []:
            if path.parts[0] in ("setuptools", "_distutils_hack", "pkg_resources") and path.suffix != ".pyc":
                files[str(path)] = path.locate().read_bytes()  # type: ignore[attr-defined]
            elif path.name == "entry_points.txt":
                files[f"{stem}.dist-info/entry_points.txt"] = path.locate().read_bytes()  # type: ignore[attr-defined]
    digests = {at: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for at, data in files.items()}
    record = [f"{at},sha256={digests[at].rstrip(b'=').decode()},{len(data)}" for at, data in files.items()]
    files[f"{stem}.dist-info/RECORD"] = "\n".join([*record, f"{stem}.dist-info/RECORD,,", ""]).encode()
    made = index / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for at, data in files.items():
            archive.writestr(at, data)
    return made


def environment(checkout: Path, **variables: str) -> dict[str, str]:
    """Environment of a user whose pip knows one index, and nothing else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "MAKE"))}
    ours = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_NO_COMPILE": "1", "PIP_RETRIES": "0"}
    return kept | ours | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout.parent / "index")} | variables


def attempt(checkout: Path, venv: Path, *locks: Path, python: tuple[str, ...] = (), **variables: str) -> str:
    """Error of the script, without its first line; the test fails if it is not one line."""
    command = [sys.executable, *python, SCRIPT] if not python else [sys.executable, *python]
    done = subprocess.run(
        [*command, venv, *(lock.relative_to(ROOT) for lock in locks)],
        cwd=checkout,
        env=environment(checkout, **variables),
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("layerfarm: installing")]
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1), done.stderr
    assert not (venv / INSTALLED).exists()
    return lines[0]


def make(checkout: Path, target: str, venv: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--silent", target, f"VENV={venv}", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)


@pytest.fixture
def killed(checkout: Path, tmp_path: Path) -> Path:
    """An environment whose making was killed at its very beginning."""
    venv = tmp_path / "venv"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, venv, CORE.relative_to(ROOT)],
        cwd=checkout,
        env=environment(checkout),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (venv / "bin/python").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (venv / INSTALLED).exists()
    return venv


def test_a_killed_installation_resumes_without_looking_for_newer_releases(checkout: Path, killed: Path) -> None:
    # First without --no-deps, to show that the newer releases are there to be looked at: pip resolves, and stops.
    text = (checkout / SCRIPT).read_text()
    resolving = text.replace('pinned = ["install", "--no-deps", ', 'pinned = ["install", ')
    assert resolving != text
    (checkout / SCRIPT).write_text(resolving)
    try:
        refused = make(checkout, "environment", killed)
    finally:
        (checkout / SCRIPT).write_text(text)
    if refused.returncode == 0:  # since pip 25 what is pinned by hash is not looked for
        assert int(pip.__version__.partition(".")[0]) >= 25
        (killed / INSTALLED).unlink()
    else:
        assert FAR in (killed / "install.log").read_text()
        assert not (killed / INSTALLED).exists()

    done = make(checkout, "environment", killed)
    assert done.returncode == 0, done.stderr + (killed / "install.log").read_text()
    freeze = [
        killed / "bin/python",
        "-m",
        "pip",
        "list",
        "--format=freeze",
        "--exclude-editable",
        "--exclude=pip",
    ]
    lines = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.splitlines()
    listed = {line for line in lines if not line.startswith("pip==")}
    pinned = {name.replace("_", "-") for lock in LOCKS for name in pins(lock.read_text())}
    left_out = {name for name in pinned - listed if not name.startswith("async-timeout==")}  # of 3.11.2 and older
    assert (listed - pinned, left_out) == (set(), set())
    assert make(checkout, "environment", killed).stderr == "", "it is there, and nothing is to be said"


def test_a_python_that_is_too_old(checkout: Path, tmp_path: Path) -> None:
    old = "import runpy, sys; sys.version_info = (3, 9, 2, 'final', 0); runpy.run_path('deploy/environment.py')"
    said = attempt(checkout, tmp_path / "venv", CORE, python=("-c", old))
    assert said.startswith("layerfarm: Python 3.11 or newer is needed, ") and "make run PYTHON=python3" in said


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_a_module_that_debian_packages_apart(checkout: Path, tmp_path: Path, module: str) -> None:
    without = (
        f"import runpy, sys; sys.modules[{module!r}] = None; sys.argv[0] = 'deploy/environment.py'; "
        "runpy.run_path('deploy/environment.py', run_name='__main__')"
    )
    said = attempt(checkout, tmp_path / "venv", CORE, python=("-c", without))
    assert f"no module {module}" in said and "apt install python3-venv" in said


@pytest.fixture(scope="module")
def made(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip and nothing else, for what fails after it was made."""
    venv = tmp_path_factory.mktemp("made") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python3*/site-packages")
    shutil.copytree(Path(pip.__file__).parent, packages / "pip")
    return venv


def test_no_network(checkout: Path, made: Path) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    said = attempt(checkout, made, CORE, PIP_NO_INDEX="0", PIP_FIND_LINKS="", PIP_INDEX_URL=nowhere, PIP_RETRIES="1")
    assert said.startswith("layerfarm: no package index can be reached: check the network")


def test_an_index_that_lacks_a_pinned_file(checkout: Path, made: Path, tmp_path: Path) -> None:
    said = attempt(checkout, made, CORE, PIP_FIND_LINKS=str(tmp_path))
    assert "the package index lacks a pinned file" in said and "==" in said


def test_a_file_that_is_not_the_pinned_one(checkout: Path, made: Path, tmp_path: Path) -> None:
    shutil.copytree(checkout.parent / "index", tmp_path / "index")
    name = next(iter(pins((checkout / CORE.relative_to(ROOT)).read_text())))
    wheel(tmp_path / "index", *name.split("=="), ["something-else"])
    said = attempt(checkout, made, CORE, PIP_FIND_LINKS=str(tmp_path / "index"))
    assert "a package is not the one that is pinned" in said


def test_a_full_disk(checkout: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small filesystem")
    venv = tmp_path / "venv"
    venv.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", venv], check=True)
    try:
        assert attempt(checkout, venv, CORE).startswith("layerfarm: the disk is full: make room on that of ")
    finally:
        subprocess.run(["umount", venv], check=True)


@pytest.fixture
def read_only(checkout: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkout that may only be read: root may write anywhere but on a filesystem that is read-only itself."""
    copy = tmp_path / "layerfarm"
    shutil.copytree(checkout, copy)
    if os.geteuid() != 0:
        copy.chmod(0o555)
        yield copy
        copy.chmod(0o755)
        return
    subprocess.run(["mount", "--bind", copy, copy], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", copy], check=True)
        yield copy
    finally:
        subprocess.run(["umount", copy], check=True)


def test_a_checkout_that_may_only_be_read(read_only: Path) -> None:
    command = ["make", "--silent", "core", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=read_only, env=environment(read_only), capture_output=True, text=True)
    said, *rest = done.stderr.splitlines()
    assert said.startswith("layerfarm: cannot write ") and "copy the checkout" in said
    assert done.returncode != 0 and all(line.startswith("make: ***") for line in rest)
