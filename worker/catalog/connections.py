"""The credentials and certificates with which each source and the destination is accessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from layerfarm.jobs.errors import CatalogError
from layerfarm.worker.catalog.document import CatalogFile, Connection
from layerfarm.worker.catalog.sources import source_for

ConnectionOf = Callable[[str], Connection]
"""Returns the connection for ``docker://HOST/…``."""


def of_sources(catalog: CatalogFile) -> ConnectionOf:
    """Return the connections of the sources; a reference belongs to the first source that has its repository."""

    def connection(reference: str) -> Connection:
        source = source_for(catalog, reference)
        return catalog.access.connection.but(source.access if source is not None else None)

    return connection


def of_destination(catalog: CatalogFile) -> ConnectionOf:
    """Return the connection of the destination, for all references."""
    connection = catalog.access.connection.but(catalog.destination.access)
    return lambda reference: connection


def check_connections(catalog: CatalogFile) -> None:
    """Check the directories of certificates: skopeo does not complain about one that is absent.

    Raises:
        CatalogError: one has no certificates, or a client's certificate without its key.
    """
    places = (catalog.access, catalog.destination.access, *(source.access for source in catalog.sources))
    for directory in sorted({place.cert_dir for place in places if place is not None and place.cert_dir is not None}):
        found = [path for path in Path(directory).glob("*") if path.suffix in (".crt", ".cert")]
        if not found:
            raise CatalogError(
                "no certificates in the directory",
                where=directory,
                hint="*.crt for authorities, *.cert and *.key for a client, as in containers-certs.d(5)",
            )
        for path in found:
            if path.suffix == ".cert" and not path.with_suffix(".key").exists():
                raise CatalogError(f"certificate has no key beside it: {path.with_suffix('.key').name}", where=path)
