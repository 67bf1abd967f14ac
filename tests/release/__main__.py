"""``make release``: everything that a release consists of, in one directory, with its checksums.

The same commit gives the same bytes on every day: times are those of the commit (``SOURCE_DATE_EPOCH``), archives are
sorted, and the container image is built by layerfarm from packages of one state of Debian's archive (``--mirror``).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.release import artifacts, image

ROOT: Final = Path(__file__).resolve().parents[2]


def main() -> int:
    """Make the artifacts, and the image unless ``--without-image`` is given."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--without-image", action="store_true", help="the image needs root, debootstrap and crun")
    parser.add_argument("--suite", default="bookworm", help="the Debian of the image")
    parser.add_argument("--mirror", help="a mirror, or a snapshot of Debian's archive at one time")
    options = parser.parse_args()
    lacking = [] if options.without_image else image.lacking()
    if lacking:
        print(f"make release: the image needs {', '.join(lacking)}; or give IMAGE=no", file=sys.stderr)
        return 1
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for path in output.iterdir():
        path.unlink()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _time_of_commit())
    wheel = artifacts.write(output, epoch)
    if not options.without_image:
        image.write(output, wheel, epoch, options.suite, options.mirror)
    sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in sorted(output.iterdir()))
    (output / "SHA256SUMS").write_text(sums)
    print(sums, end="")
    return 0


def _time_of_commit() -> str:
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
