"""Images of other distributions' kind: small trees with a real rpm database, and with one in apk's format."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import subprocess
from pathlib import Path

_PACKAGES = ("base", "libc", "shell", "crypto", "tls", "web", "language", "data", "tools", "zones")


_BUILT = 1_700_000_000


def _version(name: str, day: int) -> str:
    """A package in three changes from one day to the next."""
    changes = random.Random(name)
    return f"1.{sum(changes.random() < 0.3 for _ in range(day))}"


def apk_files(name: str, version: str) -> dict[str, bytes]:
    """The files of one version: some 300 kB of text and code."""
    made = random.Random(f"{name} {version}")
    files = {f"usr/lib/{name}/lib{name}-{number}.so": _code(made) for number in range(4)}
    files[f"usr/bin/{name}"] = _code(made)
    files[f"etc/{name}/{name}.conf"] = f"# {name}\nversion = {version}\n".encode()
    return files


def _code(made: random.Random) -> bytes:
    words = [made.randbytes(made.choice((4, 8, 16))) for _ in range(2000)]
    return b"".join(made.choice(words) for _ in range(6000))


def apk_tree(root: Path, day: int, *, own: tuple[str, ...] = (), owner: str = "") -> None:
    """A tree whose packages are listed in ``lib/apk/db/installed`` as apk-tools writes it.

    The packages of ``own`` are such as only the images of ``owner`` have.
    """
    stanzas = []
    for name in (f"{owner}-{name}" if name in own else name for name in _PACKAGES):
        version = _version(name, day)
        files = apk_files(name, version)
        stanzas.append(_apk_stanza(name, version, files))
        _write(root, files)
    _write(root, {"lib/apk/db/installed": "\n".join(stanzas).encode() + b"\n", "etc/apk/world": b"base\n"})


def _apk_stanza(name: str, version: str, files: dict[str, bytes]) -> str:
    lines = [f"C:{_apk_checksum(name.encode() + version.encode())}", f"P:{name}", f"V:{version}-r0", "A:x86_64"]
    lines += [f"S:{sum(map(len, files.values()))}", f"I:{sum(map(len, files.values()))}", f"T:{name}", f"o:{name}"]
    for directory in sorted({os.path.dirname(path) for path in files}):
        lines.append(f"F:{directory}")
        for path in sorted(files):
            if os.path.dirname(path) == directory:
                lines += [f"R:{os.path.basename(path)}", f"Z:{_apk_checksum(files[path])}"]
    return "\n".join(lines) + "\n"


def _apk_checksum(content: bytes) -> str:
    return "Q1" + base64.b64encode(hashlib.sha1(content).digest()).decode()


_SPEC = """\
Name: {name}
Version: {version}
Release: 1
Summary: {name}
License: MIT
BuildArch: noarch
AutoReqProv: no
%define _build_id_links none
%description
{name}
%files
{files}
"""


def rpm_tree(root: Path, day: int) -> None:
    """A tree whose packages rpm itself built and installed; the database is rpm's own, in sqlite."""
    work = root.parent / "rpm"
    root.mkdir(parents=True, exist_ok=True)
    rpms = [_rpm(work / name, name, _version(name, day)) for name in _PACKAGES]
    rpm = ["rpm", "--root", str(root), "--dbpath", "/usr/lib/sysimage/rpm"]
    _run(*rpm, "--initdb")
    _run(*rpm, "-i", "--nodeps", "--noscripts", *map(str, rpms))


def _rpm(work: Path, name: str, version: str) -> Path:
    files = apk_files(name, version)
    _write(work / "root", files)
    (work / "package.spec").write_text(
        _SPEC.format(name=name, version=version, files="\n".join(f"/{path}" for path in files))
    )
    where = ["--define", f"_topdir {work}/top", "--buildroot", str(work / "build")]
    # rpmbuild empties the build root before %install; with -bb and no %install of its own, it has to be filled there.
    install = f"%install\ncp -a {work}/root/. %{{buildroot}}/\n"
    with (work / "package.spec").open("a") as spec:
        spec.write(install)
    _run("rpmbuild", "-bb", "--quiet", *where, "--define", "__os_install_post %{nil}", str(work / "package.spec"))
    (made,) = (work / "top").rglob("*.rpm")
    return made


def _write(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        # As packages carry it; a directory has the time of its last change.
        os.utime(target, (_BUILT, _BUILT))
        if path.startswith("usr/bin/"):
            target.chmod(0o755)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
