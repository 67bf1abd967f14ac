"""The unit tests on every other Python of this machine that layerfarm supports, each in an environment of its own.

Pythons are looked for on PATH and under pyenv; the one that runs this has run the tests already. Tests marked ``large``
are left out: the amount of work, and not the Python, decides their outcome. Environments are kept in ``.cache``,
and brought up to date by ``deploy/environment.py`` as the main one is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    """Run the unit tests on each; ``arguments`` are pytest's. The exit code of the last run that failed."""
    code = 0
    pythons = others()
    print(f"other Pythons on this machine: {', '.join(pythons) or 'none'}", flush=True)
    tools = ROOT / ".cache/unit-requirements.txt"
    tools.parent.mkdir(exist_ok=True)
    wanted = {name: text for name, text in pins(TESTS.read_text()).items() if name.partition("==")[0] in _TOOLS}
    assert len(wanted) == len(_TOOLS), "the tests' lock lacks a tool of the unit tests"
    tools.write_text("".join(wanted.values()))
    for version, python in pythons.items():
        venv = ROOT / ".cache" / f"python{version}"
        # Whoever uses them but rarely may wait for what is not compiled.
        quick = os.environ | {"PIP_NO_COMPILE": "1"}
        make = [python, ROOT / "deploy/environment.py", venv, CORE, EXTRAS, tools]
        if subprocess.run(make, env=quick).returncode != 0:
            return 1
        own = {"PATH": f"{venv}/bin{os.pathsep}{os.environ['PATH']}", "BRIEF": "1"}
        tests = [venv / "bin/python", "-m", "pytest", "-q", "-m", "not large", *arguments, "tests/unit"]
        print(f"unit tests on Python {version}", flush=True)
        code = subprocess.run(tests, cwd=ROOT, env=os.environ | own).returncode or code
    return code


def _patch(python: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in python.parents[1].name.split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
