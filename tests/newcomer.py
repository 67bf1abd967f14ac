"""``make newcomer``: what the README promises, tried where nothing is: Debian 12 and 13, as root and as a user.

Each row is a machine of its own: a debootstrapped Debian as the root of a mount and a process namespace, with /proc,
/sys and its cgroups, /dev, and signals at their defaults; then the README's packages, a clone, ``make run`` and
``make test``. Only the time for downloads is spared: the archives of apt and pip are kept in ``.cache/newcomer``.
Root is needed to make them. Nothing but the standard library and debootstrap is used, so that CI can begin with it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.debian import ALONE, bootstrap

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / ".cache"

PACKAGES: Final = ("python3", "python3-venv", "make", "git", "ca-certificates")
"""Packages that the README asks for, and certificates for git and pip."""
SERVERS: Final = {
    ("bookworm", "root"): "redis-server",
    ("bookworm", "user"): "",
    ("trixie", "root"): "valkey-server",
    ("trixie", "user"): "redis-server",
}
"""The Redis that the tests of a row run with (``LAYERFARM_TEST_REDIS``), a package of its Debian; none: the wheel's."""

_HOST: Final = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/pip.conf",
    "/etc/xdg/pip",
    "/etc/ssl/certs",
    "/usr/local/share/ca-certificates",
)
"""By what pip and apt of this machine find their registries: copied, never shared."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UID: Final = 1000

_BOOT: Final = """
set -e
cd "$1"; shift
mount -t proc proc proc
for name in sys dev; do mount --rbind /$name $name; done
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=755 run run
# systemd's programs need this directory; they take systemd for running only if /run/systemd/system exists.
mkdir run/systemd
mkdir -p old
pivot_root . old
umount -l /old
rmdir /old
# Without exec: setpriv would clear the parent-death signal, and the machine would outlive unshare.
"$@" || exit $?
"""


class Outcome(NamedTuple):
    """Outcome of one command of the README on one machine."""

    code: int
    seconds: float
    text: str

    @property
    def passed(self) -> str:
        """Closing line of pytest, for ``make test``, without its frame."""
        found = re.findall(r"=+ (\d+ (?:passed|failed).*) in [\d.]+s", self.text)
        return found[-1] if found else ""

    @property
    def could_run(self) -> list[str]:
        """Tests that were left out although the machine could run them: for want of anything but root's rights."""
        skipped = re.findall(r"^(tests/\S+): Skipped: (.*)$", self.text, re.MULTILINE)
        return [f"{test}: {why}" for test, why in skipped if "root" not in why]


class Machine:
    """A bare Debian while the block runs."""

    def __init__(self, suite: str, user: str, stack: ExitStack) -> None:
        self._user = user
        self._root = _debian(suite, stack)
        copy_host(self._root)
        for kind, owner in (("apt/archives", 0), (f"pip-{user}", _UID if user == "user" else 0)):
            (CACHE / "newcomer" / suite / kind).mkdir(parents=True, exist_ok=True)
            shutil.chown(CACHE / "newcomer" / suite / kind, owner, owner)
        _mount(stack, "--bind", CACHE / "newcomer" / suite / "apt/archives", self._root / "var/cache/apt/archives")
        self.home = "/root" if user == "root" else "/home/newcomer"
        (self._root / self.home[1:] / ".cache/pip").mkdir(parents=True)
        _mount(stack, "--bind", CACHE / "newcomer" / suite / f"pip-{user}", self._root / self.home[1:] / ".cache/pip")
        self.as_root("apt-get update -qq")
        self.as_root(f"apt-get install -y -qq --no-install-recommends {' '.join(PACKAGES)} >/dev/null")
        owner = "root"
        if user == "user":
            owner = "newcomer"
            self.as_root(f"useradd -u {_UID} -d {self.home} -s /bin/bash {owner}")
            self.as_root(f"chown {owner}: {self.home} {self.home}/.cache")
        # Other users may enter it: as root, the tests run some commands as one of them.
        self.clone = "/opt/layerfarm" if user == "root" else f"{self.home}/layerfarm"
        subprocess.run(["git", "clone", "-q", ROOT, self._root / self.clone[1:]], check=True)
        self.as_root(f"chown -R {owner}: {self.clone}")

    def follow(self, command: str, log: Path, **variables: str) -> Outcome:
        """Type a command in the clone, as the user of this machine."""
        begin = time.monotonic()
        done = self._start(self._user, f"cd {self.clone} && {command}", log, variables)
        return Outcome(done, time.monotonic() - begin, log.read_text(errors="replace"))

    def as_root(self, command: str) -> None:
        """Work of an administrator beforehand."""
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory, "log")
            code = self._start("root", command, log, {})
            assert code == 0, f"{command}: {log.read_text(errors='replace')[-4000:]}"

    def _start(self, user: str, command: str, log: Path, variables: dict[str, str]) -> int:
        own = {"PATH": _PATH, "HOME": self.home if user != "root" else "/root", "LANG": "C.UTF-8"}
        as_user = ["setpriv", "--reuid=newcomer", "--regid=newcomer", "--init-groups"] if user == "user" else []
        boot = [*ALONE, "--uts", "--ipc", "sh", "-c", _BOOT, "sh", str(self._root), *as_user, "/bin/sh", "-c", command]
        with log.open("wb") as out:
            return subprocess.run(
                boot,
                env=host_variables() | own | {"DEBIAN_FRONTEND": "noninteractive"} | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # A shell that put make into the background ignores it, and so would all that is started here.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="make newcomer", description=__doc__.partition("\n")[0])
    parser.add_argument("--suites", nargs="+", default=["bookworm", "trixie"])
    parser.add_argument("--users", nargs="+", default=["root", "user"], choices=["root", "user"])
    parser.add_argument("--targets", nargs="+", default=["run", "test"], choices=["run", "test"])
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print("make newcomer makes machines: it needs root, and debootstrap (apt install debootstrap)", file=sys.stderr)
        return 1
    # Unwinds, as an interrupt does: the machine ends, and its mounts are undone.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    logs = CACHE / "newcomer/logs"
    logs.mkdir(parents=True, exist_ok=True)
    rows = [("Debian", "user", "Python", "server", *(f"make {target}" for target in options.targets))]
    good = True
    for suite in options.suites:
        for user in options.users:
            row, faults = _try(suite, user, options.targets, logs)
            rows.append(row)
            good = good and not faults
            print("\n".join([" | ".join(row), *faults]), flush=True)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0 if good else 1


def _try(suite: str, user: str, targets: list[str], logs: Path) -> tuple[tuple[str, ...], list[str]]:
    """The row of one machine, and what is wrong with it."""
    server = SERVERS.get((suite, user), "")
    cells, faults = [], []
    with ExitStack() as stack:
        machine = Machine(suite, user, stack)
        for target in targets:
            if target == "test" and server:
                machine.as_root(f"RUNLEVEL=1 apt-get install -y -qq --no-install-recommends {server} >/dev/null")
            if target == "test" and user == "user":
                # The README says to ask an administrator for it.
                machine.as_root(f"sh {machine.clone}/tests/install-packages")
            everything = {"REQUIRE_ALL": "1"} if user == "root" else {}
            variables = {"LAYERFARM_TEST_REDIS": server} if server else {}
            log = logs / f"{suite}-{user}-{target}.log"
            done = machine.follow(f"make {target}", log, **everything, **variables)
            cells.append(f"rc {done.code}, {done.seconds:.0f} s{', ' if done.passed else ''}{done.passed}")
            if done.code:
                faults.append(f"  {log}: {shlex.quote(done.text.strip()[-300:])}")
            if target == "run" and "trees agree" not in done.text:
                faults.append("  the demo did not compare")
            faults += [f"  left out: {test}" for test in done.could_run]
        version = logs / f"{suite}-{user}-python.log"
        python = machine.follow("python3 --version", version).text.split()[-1]
    return (suite, user, python, server or "the wheel's", *cells), faults


def _debian(suite: str, stack: ExitStack) -> Path:
    base = CACHE / f"{suite}-minbase"
    if not base.is_dir():
        scripts = Path("/usr/share/debootstrap/scripts")
        known = (scripts / suite).exists()
        bootstrap(suite, base, archive=() if known else ("http://deb.debian.org/debian", str(scripts / "sid")))
    root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerfarm-newcomer-"))) / "root"
    # A copy, no overlay: the tests mount overlays of their own, which cannot lie on another.
    subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
    # A machine that is thrown away needs no fsync for each file of a package.
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    _mount(stack, "--bind", root, root)
    return root


def copy_host(root: Path) -> None:
    """Put copies of this machine's files of :data:`_HOST` at the same places below ``root``."""
    for path in filter(Path.exists, map(Path, _HOST)):
        at = root / path.relative_to("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        if at.is_dir() and not at.is_symlink():
            shutil.rmtree(at)
        else:
            at.unlink(missing_ok=True)
        subprocess.run(["cp", "-aL", path, at], check=True)


def host_variables() -> dict[str, str]:
    """The variables by which pip of this machine finds its index and trusts it; its cache is another machine's."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(("PIP_", "SSL_", "REQUESTS_")) or name.lower().endswith("_proxy"))
        and name != "PIP_CACHE_DIR"
    }


def _mount(stack: ExitStack, *arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)
    stack.callback(subprocess.run, ["umount", "--lazy", arguments[-1]], check=True)


if __name__ == "__main__":
    sys.exit(main())
