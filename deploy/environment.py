"""Make the virtual environment of a checkout, or bring it up to date: the first step of `make run` and `make test`.

    python3 deploy/environment.py .venv deploy/requirements.txt [LOCK...]

Locks are installed, not resolved: `pip install --no-deps --require-hashes`, then `pip check`. The
environment gets a record of what was installed only when it is complete, so the next call continues an interrupted one.
An error is one line that says what to do; pip's own output is then in VENV/install.log.
Nothing but the standard library is used, and the first statements run on any Python 3.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - it is the user's own Python that runs this
    sys.exit(
        f"layerfarm: Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: "
        "install a newer one and name it, make run PYTHON=python3.13"
    )

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAMP = "layerfarm-installed.json"
LOG = "install.log"

_NO_VENV = "this Python has no module {}: install it (on Debian: apt install python3-venv), and call make again"
_FULL = "the disk is full: make room on that of {venv} and of {tmp}"
_WHAT_TO_DO = (
    (r"No space left on device|Disk quota exceeded", _FULL),
    (r"Read-only file system|Permission denied", "no right to write: {line}"),
    (
        r"DO NOT MATCH THE HASHES",
        "a package is not the one that is pinned: the index or its cache is damaged or tampered with ({line})",
    ),
    # An index that does not answer is tried again by pip before it gives up, and then has no version to offer.
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|SSLError|"
        r"Connection (?:refused|reset|broken|aborted)|Network is unreachable|Temporary failure in name resolution",
        "no package index can be reached: check the network, the proxy, or pip's configuration (pip config list)",
    ),
    (
        r"No matching distribution found for \S+",
        "the package index lacks a pinned file: ask its keeper, or name another one with PIP_INDEX_URL ({line})",
    ),
)


class Stopped(Exception):
    """The environment cannot be made; the message says why, and what to do."""


def main(venv: Path, locks: "list[Path]") -> None:
    """Make ``venv`` hold what ``locks`` pin, and this checkout.

    Raises:
        Stopped: it cannot.
    """
    stamp = venv / STAMP
    if _installed(stamp, locks):
        return
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            raise Stopped(_NO_VENV.format(module)) from None
    with _alone(venv):
        done = _read(stamp)
        if _installed(stamp, locks):  # by another make, meanwhile
            return
        stamp.unlink(missing_ok=True)
        kept = [ROOT / name for name in done.get("locks", {}) if (ROOT / name).is_file()]
        locks = sorted({*locks, *kept}, key=str)
        if not _usable(venv, done):
            _run(venv, [sys.executable, "-m", "venv", "--clear", str(venv)])
        packages = sum(len(re.findall(r"^\S+==", lock.read_text(), re.MULTILINE)) for lock in locks)
        _say(f"installing {packages} packages into {venv}")
        pip = [str(venv / "bin/python"), "-I", "-m", "pip", "--disable-pip-version-check", "--quiet"]
        pinned = ["install", "--no-deps", "--require-hashes"]
        for lock in locks:
            pinned += ["-r", str(lock)]
        _run(venv, [*pip, *pinned])
        # From the checkout itself, built by the setuptools that is pinned.
        _run(venv, [*pip, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
        _run(venv, [*pip, "check"])
        # As pip does with a wheel: without it every start would compile, where PYTHONDONTWRITEBYTECODE is set.
        _run(venv, [str(venv / "bin/python"), "-I", "-m", "compileall", "-q", str(ROOT / "jobs"), str(ROOT / "worker")])
        fresh = stamp.with_suffix(".new")
        fresh.write_text(json.dumps(_wanted(locks)))
        fresh.replace(stamp)


def _wanted(locks: "list[Path]") -> dict:
    """Return what an environment depends on: the Python, the pins, and how this checkout is installed."""
    return {
        "python": [*sys.version_info[:3], os.path.realpath(sys.executable)],
        "checkout": [str(ROOT), _digest(ROOT / "pyproject.toml")],
        "locks": {os.path.relpath(lock, ROOT): _digest(lock) for lock in locks},
    }


def _installed(stamp: Path, locks: "list[Path]") -> bool:
    done, wanted = _read(stamp), _wanted(locks)
    return bool(done) and done == {**wanted, "locks": {**done["locks"], **wanted["locks"]}}


def _usable(venv: Path, done: dict) -> bool:
    """Return True if an environment of this Python exists, with a pip that runs."""
    python = venv / "bin/python"
    if done and done["python"] != _wanted([])["python"]:
        return False
    code = "import os, sys, pip; print([*sys.version_info[:3], os.path.realpath(sys.executable)])"
    try:
        said = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True)
    except OSError:
        return False
    return said.stdout == f"{_wanted([])['python']}\n"


class _alone:
    """Excludes other makes: they wait here, and find the work done."""

    def __init__(self, venv: Path) -> None:
        self._venv = venv

    def __enter__(self) -> None:
        try:
            self._venv.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._venv, os.O_RDONLY)
            for place in (self._venv, ROOT):
                if not os.access(place, os.W_OK):
                    raise PermissionError(errno.EACCES, "may not be written by this user", str(place))
        except OSError as error:
            hint = "copy the checkout to a directory that you may write, and call make there"
            raise Stopped(f"cannot write {error.filename}, {error.strerror}: {hint}") from None
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)


def _run(venv: Path, command: "list[str]") -> None:
    # Variables of the caller for another Python and pip must not lead out of the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment.update(PIP_USER="0", PIP_NO_INPUT="1")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode == 0:
        return
    text = done.stdout.decode(errors="replace")
    with contextlib.suppress(OSError):
        (venv / LOG).write_text(text)
    raise Stopped(_reason(text, venv))


def _reason(text: str, venv: Path) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no output"]
    for pattern, answer in _WHAT_TO_DO:
        matching = [line for line in lines if re.search(pattern, line)]
        if matching:
            return answer.format(venv=venv, tmp=tempfile.gettempdir(), line=matching[0])
    if shutil.disk_usage(venv).free < 1 << 20:  # the module venv hides the output of pip
        return _FULL.format(venv=venv, tmp=tempfile.gettempdir())
    return f"the environment cannot be made, see {venv / LOG}: {lines[-1]}"


def _read(stamp: Path) -> dict:
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(text: str) -> None:
    print("layerfarm: " + text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), [Path(argument).resolve() for argument in sys.argv[2:]])
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(1)
    except OSError as error:
        _say(f"cannot write {error.filename}, {error.strerror}: correct that, and call make again")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
