"""List the repositories of a registry, for patterns of a catalog file.

distribution-spec has no such list; most registries have the API ``/v2/_catalog`` of distribution ("Listing
Repositories"), with pages that a ``Link`` header joins (RFC 8288). Docker Hub and GHCR do not, others answer only to
administrators: then a catalog must name its repositories.
"""

from __future__ import annotations

import json
import re
from typing import Final

from layerfarm.jobs.errors import RegistryError
from layerfarm.worker.catalog.answers import Kind, error_of
from layerfarm.worker.catalog.document import DOCKER
from layerfarm.worker.catalog.http_client import HttpClient, NoPlainAnswer, Reply

_SCOPE: Final = "registry:catalog:*"
_FIRST: Final = "_catalog?n=1000"
_NEXT: Final = re.compile(r"<(?:https?://[^/>]+)?/v2/(?P<path>_catalog\?[^>\s]*)>\s*;\s*rel=\"?next\"?")
_PAGES: Final = 10_000
"""Maximum number of pages; a registry may answer with one page again and again."""


def repositories_at(client: HttpClient, registry: str) -> list[str]:
    """Return the repositories below ``docker://HOST[:PORT][/PREFIX]``, without the prefix, sorted.

    Raises:
        RegistryError: the registry does not list them.
        RegistryBusy: it cannot answer now.
    """
    host, _, prefix = registry.removeprefix(DOCKER).strip("/").partition("/")
    start = f"{prefix}/" if prefix else ""
    found: set[str] = set()
    pages: set[str] = set()
    path: str | None = _FIRST
    while path is not None and path not in pages:
        if len(pages) == _PAGES:
            raise _refused(registry, f"its list has more than {_PAGES} pages")
        pages.add(path)
        try:
            reply = client.send("GET", host, path, _SCOPE)
        except NoPlainAnswer:
            raise _refused(registry, "it cannot be reached, or asks for a login that is not known") from None
        found.update(_names(reply, registry))
        link = _NEXT.search(reply.headers.get("Link", ""))
        path = link["path"] if link else None
    return sorted(name.removeprefix(start) for name in found if name.startswith(start) and name != start)


def _names(reply: Reply, registry: str) -> list[str]:
    if reply.status != 200:
        answer = reply.answer
        if answer.kind is Kind.PASSING:
            raise error_of(answer, registry)
        raise _refused(registry, answer.text)
    try:
        names = json.loads(reply.body)["repositories"] or []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _refused(registry, "its answer is not a list") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _refused(registry, "its answer is not a list of names")
    return names


def _refused(registry: str, why: str) -> RegistryError:
    return RegistryError(
        f"registry does not list its repositories, {why}", where=registry, hint="give their names instead of patterns"
    )
