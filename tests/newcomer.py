"""``make newcomer``: what the README promises, in a Debian that has nothing: its packages, its words, its time.

Root is needed for the chroot. The time is printed and is no verdict: five minutes are the goal.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.deploy.image_steps import Stage

ROOT = Path(__file__).resolve().parents[1]
DEBIAN = ROOT / ".cache/bookworm-minbase"
PACKAGES = ("python3", "python3-venv", "make", "git")
"""What a newcomer has to have: the README names no other."""


def main() -> int:
    if not DEBIAN.is_dir():
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(DEBIAN)], check=True)
    readme = (ROOT / "README.md").read_text()
    words = re.findall(r"^    (make run)\b", readme, re.MULTILINE)
    assert words, "the README does not say how to begin"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerfarm-newcomer-")))
        debian = Stage(DEBIAN, directory, stack)
        debian.run(["apt-get", "update"])
        debian.run(["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES])
        subprocess.run(["git", "clone", "-q", ROOT, directory / "clone"], check=True)
        shutil.move(directory / "clone", debian.root / "root/layerfarm")
        debian.workdir = "/root/layerfarm"
        begin = time.monotonic()
        said = debian.run(words[0].split())
        seconds = time.monotonic() - begin
        print(said[-2000:])
        print(debian.run(["python3", "--version"]).strip())
        print(f"`{words[0]}` took {seconds:.0f} s, its packages not counted")
        return 0 if "manifests agree" in said else 1


if __name__ == "__main__":
    sys.exit(main())
