"""The Debian archive as it was on each day: both versions of all packages needed, and a repository for each day."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .spec import day_of

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ARCHITECTURE = subprocess.run(
    ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
).stdout.strip()
Stanza = Mapping[str, str]


@dataclass(frozen=True)
class Archive:
    """One suite, below a directory of its own."""

    directory: Path
    suite: str
    days: int

    def prepare(self, packages: Sequence[str]) -> None:
        """Download what the packages and a minimal system need, in both versions, and write all days."""
        pool = self.directory / "pool"
        pool.mkdir(parents=True, exist_ok=True)
        for name, sources in self._sources().items():
            apt = _Apt(self.directory / name, sources)
            apt.run("update")
            apt.download((*_essential(apt.stanzas()), *packages))
            for deb in (apt.directory / "archives").glob("*.deb"):
                # apt writes the colon of an epoch as %3a; with it in Filename, it would look for it unquoted.
                target = pool / deb.name.replace("%3a", ":")
                if not target.exists():
                    target.hardlink_to(deb)
        for day in range(self.days):
            self._write_day(day)

    def repository(self, day: int) -> Path:
        """An apt repository that holds one version of each package."""
        return self.directory / f"day-{day}"

    def dependencies(self) -> dict[str, list[str]]:
        """By package, the packages that it depends on, the first of alternatives."""
        found = {}
        for name, versions in self._held.items():
            stanza = versions.get("new") or versions["old"]
            text = ", ".join(filter(None, (stanza.get("Pre-Depends"), stanza.get("Depends"))))
            found[name] = [re.split(r"[ :(|]", item.strip(), maxsplit=1)[0] for item in text.split(",") if item.strip()]
        return found

    def _sources(self) -> dict[str, str]:
        def line(site: str, suite: str) -> str:
            return f"deb [signed-by={KEYRING}] {site} {suite} main\n"

        main, security = _sites()
        old = line(main, self.suite)
        return {"old": old, "new": old + line(security, f"{self.suite}-security")}

    @cached_property
    def _held(self) -> dict[str, dict[str, Stanza]]:
        """By package name, its older and its newer stanza, of the packages that the pool holds."""
        held: dict[str, dict[str, Stanza]] = {}
        pool = {path.name for path in (self.directory / "pool").iterdir()}
        for age in ("old", "new"):
            for stanza in _Apt(self.directory / age, "").stanzas():
                if _file_name(stanza) in pool:
                    versions = held.setdefault(stanza["Package"], {})
                    if age not in versions or _newer(stanza["Version"], versions[age]["Version"]):
                        versions[age] = stanza
        return held

    def _write_day(self, day: int) -> None:
        place = self.repository(day)
        index = place / "dists" / self.suite / "main" / f"binary-{_ARCHITECTURE}"
        index.mkdir(parents=True, exist_ok=True)
        chosen = []
        for versions in self._held.values():
            newest = versions.get("new") or versions["old"]
            source = newest.get("Source", newest["Package"]).split()[0]
            chosen.append(newest if day_of(source, self.days) <= day else versions.get("old", newest))
        # A blank line after the last stanza too: debootstrap does not see it otherwise.
        text = "".join(_text(stanza) + "\n" for stanza in sorted(chosen, key=lambda s: s["Package"]))
        (index / "Packages").write_text(text)
        release = f"Suite: {self.suite}\nCodename: {self.suite}\nArchitectures: {_ARCHITECTURE}\nComponents: main\n"
        (place / "dists" / self.suite / "Release").write_text(release + _sums(place / "dists" / self.suite))
        if not (place / "pool").exists():
            (place / "pool").symlink_to("../pool")


class _Apt:
    """apt-get with lists and a cache of its own, on a machine where nothing is installed."""

    def __init__(self, directory: Path, sources: str) -> None:
        self.directory = directory
        for name in ("lists/partial", "archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        if sources:
            (directory / "sources.list").write_text(sources)
            (directory / "status").touch()

    def run(self, *arguments: str) -> str:
        where = {
            "Dir::Etc::sourcelist": self.directory / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": self.directory / "lists",
            "Dir::State::status": self.directory / "status",
            "Dir::Cache::archives": self.directory / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Retries": "3",
        }
        options = [part for key, value in where.items() for part in ("-o", f"{key}={value}")]
        command = ["apt-get", "-qq", "-y", *options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def download(self, packages: Sequence[str]) -> None:
        self.run("install", "--download-only", *packages)

    def stanzas(self) -> Iterator[Stanza]:
        for index in sorted((self.directory / "lists").glob("*_Packages*")):
            done = subprocess.run(
                ["/usr/lib/apt/apt-helper", "cat-file", str(index)], stdout=subprocess.PIPE, check=True, text=True
            )
            for text in done.stdout.split("\n\n"):
                if text.strip():
                    yield _stanza(text)


def _sites() -> tuple[str, str]:
    """Debian's archive of this machine, and its security updates."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    sites = {release.endswith("-security"): site for site, release in map(str.split, reversed(lines))}
    assert False in sites, "apt knows no archive of Debian on this machine"
    return sites[False], sites.get(True, f"{sites[False]}-security")


def _essential(stanzas: Iterator[Stanza]) -> list[str]:
    """Packages that debootstrap's minbase installs."""
    known = {s["Package"]: s for s in stanzas}
    required = {name for name, s in known.items() if s.get("Essential") == "yes" or s.get("Priority") == "required"}
    return sorted(required | {"apt"} | (known.keys() & {"usr-is-merged"}))


def _stanza(text: str) -> Stanza:
    fields: dict[str, str] = {}
    name = ""
    for line in text.strip("\n").split("\n"):
        if line[:1].isspace():
            fields[name] += "\n" + line
        else:
            name, _, value = line.partition(": ")
            fields[name.rstrip(":")] = value
    return fields


def _text(stanza: Stanza) -> str:
    fields = dict(stanza) | {"Filename": f"pool/{_file_name(stanza)}"}
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def _file_name(stanza: Stanza) -> str:
    """Its name in apt-get's cache, except the colon."""
    return f"{stanza['Package']}_{stanza['Version']}_{stanza['Architecture']}.deb"


def _newer(version: str, than: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", version, "gt", than], check=False).returncode == 0


def _sums(directory: Path) -> str:
    import hashlib

    lines = ["SHA256:"]
    for path in sorted(directory.rglob("Packages")):
        content = path.read_bytes()
        lines.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {path.relative_to(directory)}")
    return "\n".join(lines) + "\n"
