"""The unit tests on every other Python of this machine that layerfarm supports, each in an environment of its own.

Pythons are looked for on PATH and under pyenv; the one that runs this has run the tests already. Tests marked ``large``
are left out: the amount of work or the sources, and not the Python, decide their outcome. Environments are kept in
``.cache``, and brought up to date by ``deploy/environment.py`` as the main one is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.locks import CORE, EXTRAS, PYTHONS, ROOT, TESTS, pins

_TOOLS: Final = frozenset(
    [
        "attrs",
        "execnet",
        "fakeredis",
        "hypothesis",
        "iniconfig",
        "jsonschema",
        "jsonschema-specifications",
        "lupa",
        "pluggy",
        "psutil",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "referencing",
        "rpds-py",
        "sortedcontainers",
    ]
)
"""Packages of the tests' lock that the unit tests need: half as much to install."""
_USABLE: Final = "import ensurepip, sqlite3, ssl, venv"
"""Modules that the environment and the tests need, and that a Python built without its libraries lacks."""


def others() -> dict[str, str]:
    """The other Pythons by version, ``3.13``; of several of one version, the one on PATH or the newest."""
    found = {}
    for version in PYTHONS:
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            continue
        name = f"python{version}"
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
        built = sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"), key=_patch, reverse=True)
        for python in [*filter(None, [shutil.which(name)]), *map(str, built)]:
            # A shim of pyenv is on PATH also for a version that is not selected, and then ends with an error.
            if subprocess.run([python, "-I", "-c", _USABLE], capture_output=True).returncode == 0:
                found[version] = python
                break
    return found


def main(arguments: list[str]) -> int:
    """Run the unit tests on all of them at once; ``arguments`` are pytest's. The exit code of the last that failed."""
    pythons = others()
    print(f"other Pythons on this machine: {', '.join(pythons) or 'none'}", flush=True)
    tools = ROOT / ".cache/unit-requirements.txt"
    tools.parent.mkdir(exist_ok=True)
    wanted = {name: text for name, text in pins(TESTS.read_text()).items() if name.partition("==")[0] in _TOOLS}
    assert len(wanted) == len(_TOOLS), "the tests' lock lacks a tool of the unit tests"
    tools.write_text("".join(wanted.values()))
    code = 0
    with ThreadPoolExecutor(len(pythons) or 1) as pool:
        runs = pool.map(lambda version: _tested(version, pythons[version], tools, arguments), pythons)
        for version, done in zip(pythons, runs, strict=True):
            print(f"unit tests on Python {version}\n{done.stdout}", flush=True)
            code = done.returncode or code
    return code


def _tested(version: str, python: str, tools: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Make the environment of a Python and run the tests in it; the process that failed, or that of pytest."""
    venv = ROOT / ".cache" / f"python{version}"
    # Modules are compiled when they are first imported.
    made = _output([python, ROOT / "deploy/environment.py", venv, CORE, EXTRAS, tools], {"PIP_NO_COMPILE": "1"})
    if made.returncode != 0:
        return made
    own = {"PATH": f"{venv}/bin{os.pathsep}{os.environ['PATH']}", "BRIEF": "1"}
    return _output([venv / "bin/python", "-m", "pytest", "-q", "-m", "not large", *arguments, "tests/unit"], own)


def _output(command: list[str | Path], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _patch(python: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in python.parents[1].name.split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
