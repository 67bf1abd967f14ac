"""Wheel, sdist, man pages, site and SBOM of a release."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

from tests.locks import pins

ROOT: Final = Path(__file__).resolve().parents[2]
LOCKS: Final = ("deploy/requirements.txt", "deploy/requirements-extras.txt")
_BUILD: Final = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def write(output: Path, epoch: int) -> Path:
    """Write all of them into ``output``; return the wheel. ``epoch``: the time of every entry, in seconds."""
    name = f"layerfarm-{version('layerfarm')}"
    with tempfile.TemporaryDirectory(prefix="layerfarm-release-") as directory:
        # A clone, so that no other file gets in.
        source = Path(directory) / "source"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, source], check=True)
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch), "NO_MKDOCS_2_WARNING": "1"}
        for hook, target in (("build_wheel", output), ("build_sdist", Path(directory))):
            command = [sys.executable, "-c", _BUILD, hook, str(target)]
            subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
        (sdist,) = Path(directory).glob("*.tar.gz")
        unpacked = Path(directory) / "sdist"
        unpacked.mkdir()
        # Not tarfile: the Python 3.11.2 of Debian 12 has no filters.
        subprocess.run(["tar", "-xf", sdist, "-C", unpacked], check=True)
        pack(unpacked / name, output / f"{name}.tar.gz", epoch)
        pack(source / "docs/man", output / f"{name}-man.tar.gz", epoch)
        site = Path(directory) / f"{name}-site"
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
        subprocess.run(command, cwd=source, env=environment, check=True)
        pack(site, output / f"{name}-site.tar.gz", epoch)
    (wheel,) = output.glob("*.whl")
    locked = "".join((ROOT / lock).read_text() for lock in LOCKS)
    (output / f"{name}.cdx.json").write_text(json.dumps(sbom(locked, wheel, epoch), indent=1) + "\n")
    return wheel


def pack(directory: Path, target: Path, epoch: int, prefix: str | None = None) -> None:
    """Write a tar of ``directory`` whose bytes depend on its names, contents and modes, and on ``epoch``, only.

    Parameters:
        target: ``.tar`` or ``.tar.gz``.
        prefix: the directory in the archive; default: the name of ``directory``.
    """
    top = Path(directory.name if prefix is None else prefix)
    with ExitStack() as stack:
        out: IO[bytes] = stack.enter_context(target.open("wb"))
        if target.suffix == ".gz":
            out = stack.enter_context(gzip.GzipFile("", "wb", 9, out, mtime=epoch))
        archive = stack.enter_context(tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT))
        for path in sorted(directory.rglob("*")):
            info = archive.gettarinfo(path, (top / path.relative_to(directory)).as_posix())
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = epoch
            info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
            archive.addfile(info, stack.enter_context(path.open("rb")) if info.isreg() else None)


def sbom(locked: str, wheel: Path, epoch: int) -> dict[str, Any]:
    """Return an SBOM in CycloneDX 1.5: the wheel, and the pinned packages that it is tested and shipped with."""
    name, number = "layerfarm", version("layerfarm")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = _component("application", name, number, [digest])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {"timestamp": _rfc3339(epoch), "component": own},
        "components": list(_pinned(locked)),
    }


def _pinned(locked: str) -> Iterator[dict[str, Any]]:
    for pin, text in sorted(pins(locked).items()):
        name, _, number = pin.partition("==")
        yield _component("library", name, number, re.findall(r"sha256:([0-9a-f]{64})", text))


def _component(kind: str, name: str, number: str, digests: list[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name.lower().replace('_', '-')}@{number}"
    hashes = [{"alg": "SHA-256", "content": digest} for digest in digests]
    return {"type": kind, "bom-ref": purl, "name": name, "version": number, "purl": purl, "hashes": hashes}


def _rfc3339(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
