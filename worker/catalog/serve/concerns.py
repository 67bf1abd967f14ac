"""Find the images of a catalog that a push concerns."""

from __future__ import annotations

from layerfarm.jobs.relayer.referrers import speaks_of_another
from layerfarm.worker.catalog.document import CatalogFile
from layerfarm.worker.catalog.part import whole_repository
from layerfarm.worker.catalog.serve.notifications import Push
from layerfarm.worker.catalog.sources import is_wanted, name_of, policy_for, repository_below


def concerned(catalog: CatalogFile, push: Push) -> set[str]:
    """Return the names of the images that a push concerns, ``REPOSITORY:*`` for a referrer; empty: none.

    Only the path of the repository counts. A registry has several hosts, and behind a proxy its notifications name
    another one than the catalog; what is fetched comes from the catalog's host in any case.
    """
    names = set()
    for source in catalog.sources:
        repository = repository_below(source, push.repository)
        if repository is None:
            continue
        name = name_of(source, repository, push.tag)
        if speaks_of_another(push.tag):
            names.add(whole_repository(name))
        elif is_wanted(source, push.tag) and policy_for(catalog, name) is not None:
            names.add(name)
    return names
