"""``make locks``: pin every package again, for all supported Pythons and machines at once.

Three files, none of which repeats a pin of another: what the main jobs need, what the extras add, what the tests add.
They are installed as they are, with ``pip install --no-deps --require-hashes``: nothing is resolved on the machine
that installs, so no release of any package can break an installation. uv resolves here, once, for every version in
PYTHONS; whether each pin has a wheel for each of them, on each of MACHINES, is checked before a file is replaced.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
CORE: Final = ROOT / "deploy/requirements.txt"
EXTRAS: Final = ROOT / "deploy/requirements-extras.txt"
TESTS: Final = ROOT / "tests/requirements.txt"
LOCKS: Final = (CORE, EXTRAS, TESTS)

PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
MACHINES: Final = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")

_PIN: Final = re.compile(r"^(\S+)==(\S+?)( ; [^\\\n]+?)? \\\n((?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)
_RUNS: Final = "pip install --no-deps --require-hashes"
_HEADERS: Final = {
    CORE: f"# Packages that layerfarm's main jobs need, and setuptools to build it. Made by `make locks`.\n"
    f"# Install: {_RUNS} -r deploy/requirements.txt\n",
    EXTRAS: f"# Packages that the extras add: catalog, flower, rebase, serve, traces. Made by `make locks`.\n"
    f"# Install: {_RUNS} -r deploy/requirements.txt -r deploy/requirements-extras.txt\n",
    TESTS: f"# Packages that the tests, linters and documentation add to those of deploy/. Made by `make locks`.\n"
    f"# Install: {_RUNS} -r deploy/requirements.txt -r deploy/requirements-extras.txt -r tests/requirements.txt\n",
}


def pins(text: str) -> dict[str, str]:
    """The pins of a lock by name and version, ``celery==5.7.0``; the value is the whole of the pin's text."""
    return {f"{match[1]}=={match[2]}": match[0] for match in _PIN.finditer(text)}


def main() -> int:
    uv = ROOT / ".cache/uv"
    subprocess.run([sys.executable, "-m", "venv", uv], check=True)
    subprocess.run([uv / "bin/python", "-m", "pip", "install", "--quiet", "--upgrade", "uv"], check=True)
    with tempfile.TemporaryDirectory(prefix="layerfarm-locks-") as directory:
        made = _resolve([str(uv / "bin/uv"), "pip"], Path(directory))
    for path, text in made.items():
        path.write_text(text)
        print(f"{path.relative_to(ROOT)}: {len(pins(text))} packages")
    return 0


def _resolve(uv: list[str], directory: Path) -> dict[Path, str]:
    build = directory / "build.in"
    build.write_text("\n".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]))
    everything = directory / "everything.txt"
    compile_ = [*uv, "compile", "--quiet", "--universal", "--python-version", PYTHONS[0], "--fork-strategy", "fewest"]
    compile_ += ["--generate-hashes", "--no-header", "--no-annotate", str(ROOT / "pyproject.toml"), str(build)]
    subprocess.run([*compile_, "--upgrade", "--extra", "test", "-o", str(everything)], check=True, cwd=ROOT)
    for python in PYTHONS:
        for machine in MACHINES:
            command = [*uv, "install", "--quiet", "--dry-run", "--no-deps", "--only-binary", ":all:"]
            command += ["--require-hashes", "--target", str(directory / "none"), "-r", str(everything)]
            subprocess.run([*command, "--python-version", python, "--python-platform", machine], check=True, cwd=ROOT)
    # Linux only: what a package needs on Windows is not pinned.
    left = {name: text for name, text in pins(everything.read_text()).items() if "'win32'" not in text}
    made = {}
    for path, extras in ((CORE, ()), (EXTRAS, ("--extra", "all")), (TESTS, ("--extra", "test"))):
        out = directory / path.name
        subprocess.run([*compile_, *extras, "-c", str(everything), "-o", str(out)], check=True, cwd=ROOT)
        part = {name: text for name, text in pins(out.read_text()).items() if name in left}
        made[path] = _HEADERS[path] + "".join(part.values())
        left = {name: text for name, text in left.items() if name not in part}
    assert not left, f"pinned, and needed by nothing: {sorted(left)}"
    return made


if __name__ == "__main__":
    sys.exit(main())
