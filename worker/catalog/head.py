"""Ask a registry for the digest of a tag with a HEAD request, which skopeo cannot (skopeo#1587, #1801).

Docker Hub counts each GET of a manifest as a pull, 100 in 6 hours without a login, but no HEAD. If the answer is not
plain, skopeo is asked instead.
"""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.store.descriptor import check_digest
from layerfarm.worker.catalog.answers import Kind, error_of
from layerfarm.worker.catalog.http_client import HttpClient, NoPlainAnswer, Reference

_ACCEPTED: Final = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.artifact.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
    )
)
"""Types that skopeo accepts: a registry may convert a manifest to an accepted type, and so change its digest."""


def digest(client: HttpClient, text: str) -> str:
    """Return the digest of the manifest or index that ``docker://HOST/REPOSITORY:TAG`` names.

    Raises:
        NotInRegistry: it does not exist.
        RegistryBusy: the registry cannot answer now.
        NoPlainAnswer: the answer is neither.
    """
    reference = Reference.parse(text)
    path = f"{reference.repository}/manifests/{reference.name}"
    scope = f"repository:{reference.repository}:pull"
    reply = client.send("HEAD", reference.host, path, scope, {"Accept": _ACCEPTED})
    if reply.status == 200:
        try:
            return check_digest(reply.headers.get("Docker-Content-Digest", ""))
        except ValueError as error:
            raise NoPlainAnswer from error
    answer = reply.answer
    if answer.kind in (Kind.ABSENT, Kind.PASSING):
        raise error_of(answer, text)
    raise NoPlainAnswer
