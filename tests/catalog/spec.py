"""Content of the tests' catalogs: repositories of images, each with a tag for every day.

A *day* is a state of the Debian archive: on day 0 every package has the version of the last point release, and
each later day some source packages have the version of the security archive. Which on which day follows from the
package's name, so that the same archive gives the same days.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Repository:
    """Images built as a CI farm does: a base layer, a layer of packages, a layer of the application."""

    name: str
    suite: str
    packages: tuple[str, ...]
    wheels: tuple[tuple[str, ...], ...] = ()
    """Packages that pip installs beside the application, for each day (the last one stays)."""
    app_files: int = 120
    """Files of the application, some 20 kB each."""


@dataclass(frozen=True)
class Spec:
    name: str
    days: int
    repositories: tuple[Repository, ...]
    foreign_days: int
    """Tags of the images with an apk and with an rpm database."""

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(repository.suite for repository in self.repositories))

    def packages_of(self, suite: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p for r in self.repositories if r.suite == suite for p in r.packages))


def day_of(source: str, days: int) -> int:
    """The day from 1 on which the packages of this source have their newer version."""
    return 1 + int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") % (days - 1)


SMALL = Spec(
    name="small",
    days=2,
    repositories=(
        Repository("team/tool", "bookworm", ("jq", "unzip"), app_files=10),
        Repository("team/sync", "bookworm", ("rsync",), app_files=10),
    ),
    foreign_days=1,
)
"""The part for which ``make test`` has time."""

FULL = Spec(
    name="full",
    days=5,
    repositories=(
        Repository("web/front", "bookworm", ("nginx-light", "ca-certificates")),
        Repository(
            "web/api",
            "bookworm",
            ("python3", "python3-pip", "libpq5"),
            wheels=(
                ("requests==2.31.0", "flask==3.0.0", "sqlalchemy==2.0.23"),
                ("requests==2.31.0", "flask==3.0.1", "sqlalchemy==2.0.23"),
                ("requests==2.32.3", "flask==3.0.1", "sqlalchemy==2.0.25"),
                ("requests==2.32.3", "flask==3.0.3", "sqlalchemy==2.0.25"),
                ("requests==2.32.3", "flask==3.0.3", "sqlalchemy==2.0.30"),
            ),
        ),
        Repository("web/shop", "bookworm", ("php8.2-fpm", "php8.2-xml", "php8.2-pgsql", "ca-certificates")),
        Repository("web/chat", "bookworm", ("nodejs", "ca-certificates")),
        Repository("data/postgres", "bookworm", ("postgresql-15",)),
        Repository("ci/legacy", "bullseye", ("apache2", "python3", "git", "curl")),
    ),
    foreign_days=5,
)
"""30 images of Debian packages of two releases, 5 with an apk database and 5 with an rpm database."""
