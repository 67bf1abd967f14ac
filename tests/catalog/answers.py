"""Answers of real registries, as their documentation and issue threads show them, and what each means.

Threads show the body, or what a client printed of it; where they show only the latter, the body is put together from
the code and message printed. The names of repositories and tags are those of the tests: ``{repository}``, ``{tag}``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Literal

from layerfarm.worker.catalog.answers import Kind

Request = Literal["tags", "manifest", "upload"]


@dataclass(frozen=True)
class Recorded:
    """One answer."""

    registry: str
    request: Request
    """The object of a request: the list of tags, a manifest, or a manifest to be stored."""
    status: int
    code: str
    """Empty: the body is ``message`` as it stands."""
    message: str
    kind: Kind
    source: str

    def body(self, repository: str, tag: str) -> bytes:
        message = self.message.replace("{repository}", repository).replace("{tag}", tag)
        if not self.code:
            return message.encode()
        return json.dumps({"errors": [{"code": self.code, "message": message, "detail": {}}]}).encode()

    def __str__(self) -> str:
        return f"{self.registry} {self.request} {self.status} {self.code}"


ABSENT, DENIED, PASSING, REFUSED = Kind.ABSENT, Kind.DENIED, Kind.PASSING, Kind.REFUSED
_SPEC: Final = "opencontainers/distribution-spec PR 174 (error codes)"
_NOT_KNOWN: Final = "repository name not known to registry"
_NO_ACCESS: Final = "requested access to the resource is denied"
_GAR: Final = 'Permission "artifactregistry.repositories.downloadArtifacts" denied on resource "p/{repository}" '

RECORDED: Final = (
    Recorded("distribution", "manifest", 404, "MANIFEST_UNKNOWN", "manifest unknown", ABSENT, _SPEC),
    Recorded("distribution", "manifest", 404, "NAME_UNKNOWN", _NOT_KNOWN, ABSENT, _SPEC),
    Recorded("distribution", "tags", 404, "NAME_UNKNOWN", _NOT_KNOWN, ABSENT, "klausmeyer/docker-registry-browser#323"),
    Recorded("distribution", "upload", 400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry", PASSING, _SPEC),
    Recorded("distribution", "upload", 400, "MANIFEST_INVALID", "manifest invalid", REFUSED, _SPEC),
    Recorded("distribution", "manifest", 503, "UNAVAILABLE", "service unavailable", PASSING, _SPEC),
    Recorded(
        "Harbor",
        "manifest",
        404,
        "NOT_FOUND",
        "artifact {repository}:{tag} not found",
        ABSENT,
        "containers/image#2203",
    ),
    Recorded("Harbor", "tags", 404, "NOT_FOUND", "repository {repository} not found", ABSENT, "goharbor/harbor#19342"),
    Recorded("Harbor", "manifest", 403, "FORBIDDEN", "forbidden", DENIED, "goharbor/harbor#19342"),
    Recorded(
        "Harbor",
        "upload",
        412,
        "PRECONDITION",
        "Failed to process request due to '{repository}:{tag}' configured as immutable.",
        REFUSED,
        "goharbor/harbor PR 9427",
    ),
    Recorded(
        "Harbor", "upload", 500, "UNKNOWN", "error occurred when to handle request", PASSING, "goharbor/harbor#10383"
    ),
    Recorded(
        "Quay",
        "manifest",
        404,
        "TAG_EXPIRED",
        "Tag {tag} was deleted or has expired. To pull, revive via time machine",
        ABSENT,
        "coreos/coreos-assembler PR 3517",
    ),
    Recorded("Quay", "manifest", 404, "MANIFEST_UNKNOWN", "manifest unknown", ABSENT, "coreos/coreos-assembler#4087"),
    Recorded(
        "Quay",
        "manifest",
        401,
        "UNAUTHORIZED",
        "access to the requested resource is not authorized",
        DENIED,
        "openshift/os#847",
    ),
    # It answers with CherryPy's page, without a code.
    Recorded(
        "Zuul",
        "manifest",
        404,
        "",
        "<!DOCTYPE html><html><body><h2>404 Not Found</h2><p>Nothing matches the given URI</p></body></html>",
        ABSENT,
        "zuul-registry 1.3.0, RegistryAPI.not_found",
    ),
    Recorded("Quay", "tags", 429, "", "<html>429 Too Many Requests</html>", PASSING, "containers/image#618"),
    Recorded("GHCR", "manifest", 404, "MANIFEST_UNKNOWN", "manifest unknown", ABSENT, "sigstore/cosign#1542"),
    Recorded("GHCR", "manifest", 403, "DENIED", "denied", DENIED, "LeoMartinDev/voy#3"),
    Recorded("GHCR", "manifest", 401, "UNAUTHORIZED", "unauthorized", DENIED, "ad-on-is/resticity#1"),
    Recorded(
        "GHCR",
        "manifest",
        429,
        "TOOMANYREQUESTS",
        "retry-after: 880.092µs, allowed: 44000/minute",
        PASSING,
        "dependabot/cli#380",
    ),
    Recorded(
        "ECR",
        "manifest",
        404,
        "NAME_UNKNOWN",
        "The repository with name '{repository}' does not exist in the registry with id '123456789012'",
        ABSENT,
        "plexsystems/sinker#55",
    ),
    Recorded(
        "ECR",
        "upload",
        400,
        "TAG_INVALID",
        "The image tag '{tag}' already exists in the '{repository}' repository and cannot be overwritten because the "
        "repository is immutable.",
        REFUSED,
        "moby/buildkit#3776",
    ),
    Recorded(
        "Artifact Registry",
        "manifest",
        403,
        "DENIED",
        f"{_GAR}(or it may not exist)",
        DENIED,
        "google-github-actions/auth#50",
    ),
    Recorded(
        "Artifact Registry",
        "manifest",
        404,
        "MANIFEST_UNKNOWN",
        'Failed to fetch "{tag}" from request "/v2/{repository}/manifests/{tag}".',
        ABSENT,
        "stefanprodan/dockprom#242",
    ),
    Recorded(
        "ACR",
        "manifest",
        404,
        "MANIFEST_UNKNOWN",
        'manifest tagged by "{tag}" is not found',
        ABSENT,
        "MicrosoftDocs/azure-docs#90060",
    ),
    Recorded(
        "ACR",
        "upload",
        400,
        "MANIFEST_BLOB_UNKNOWN",
        "blob unknown to registry",
        PASSING,
        "Azure/azure-sdk-for-net#36076",
    ),
    Recorded("ACR", "upload", 429, "TOOMANYREQUESTS", "Rate exceeded", PASSING, "containers/common#2494"),
    Recorded(
        "Artifactory",
        "manifest",
        404,
        "MANIFEST_UNKNOWN",
        "The named manifest is not known to the registry.",
        ABSENT,
        "jetstack/version-checker#318",
    ),
    Recorded(
        "Artifactory", "manifest", 400, "UNKNOWN", "Bad Request", REFUSED, "argoproj-labs/argocd-image-updater#306"
    ),
    Recorded("zot", "manifest", 404, "MANIFEST_UNKNOWN", "manifest unknown", ABSENT, "project-zot/zot#1394"),
    Recorded("zot", "tags", 404, "NAME_UNKNOWN", _NOT_KNOWN, ABSENT, _SPEC),
    Recorded("zot", "upload", 415, "MANIFEST_INVALID", "manifest invalid", REFUSED, "project-zot/zot#622"),
    Recorded("GitLab", "manifest", 403, "DENIED", "access forbidden", DENIED, "getwud/wud#600"),
    Recorded("GitLab", "manifest", 401, "DENIED", _NO_ACCESS, DENIED, "skopeo#2484"),
    Recorded("Docker Hub", "manifest", 401, "UNAUTHORIZED", "authentication required", DENIED, "skopeo#1466"),
    Recorded(
        "Docker Hub",
        "manifest",
        429,
        "TOOMANYREQUESTS",
        "You have reached your pull rate limit. You may increase the limit by authenticating and upgrading",
        PASSING,
        "goharbor/harbor#18094",
    ),
    # Proxies before registries.
    Recorded("nginx", "manifest", 502, "", "<html><h1>502 Bad Gateway</h1></html>", PASSING, "project-zot/zot#1373"),
    Recorded("nginx", "manifest", 404, "", "<html><h1>404 Not Found</h1></html>", ABSENT, "goharbor/harbor#3122"),
    Recorded("nginx", "manifest", 403, "", "<html><h1>403 Forbidden</h1></html>", DENIED, "siderolabs/talos#10274"),
    Recorded("nginx", "upload", 413, "", "<html>413 Request Entity Too Large</html>", REFUSED, "skopeo#2104"),
)

PRINTED: Final = (
    (
        'Manifest list must be converted to type "application/vnd.docker.distribution.manifest.list.v2+json" to be '
        'written to destination, but we cannot modify it: "Instructed to preserve digests"',
        PASSING,
    ),
    # Output of skopeo from issue threads; with names that look like answers.
    (
        "reading manifest sha256-48d9.sig in 192.168.210.93/images/alpine: unknown: artifact "
        "images/alpine:sha256-48d9.sig not found",
        ABSENT,
    ),
    (
        'Error parsing image name "docker://quay.io/a/staging:aarch64": reading manifest aarch64 in quay.io/a/staging: '
        "unknown: Tag aarch64 was deleted or has expired. To pull, revive via time machine",
        ABSENT,
    ),
    (
        "initializing source docker://x.example/connect:4.39: reading manifest 4.39 in x.example/connect: "
        "manifest unknown",
        ABSENT,
    ),
    (
        "trying to reuse blob sha256:3dc6 at destination: checking whether a blob sha256:3dc6 exists in "
        "registry.gitlab.com/a/b: requested access to the resource is denied",
        DENIED,
    ),
    (
        "writing blob: initiating layer upload to /v2/a/b/blobs/uploads/ in registry.example: requested access to the "
        "resource is denied",
        DENIED,
    ),
    (
        "Uploading manifest list failed, attempted the following formats: "
        "application/vnd.docker.distribution.manifest.list.v2+json(uploading manifest 3.10 to x.azurecr.io/python: "
        "toomanyrequests: Rate exceeded)",
        PASSING,
    ),
    (
        "Error determining repository tags: Invalid status code returned when fetching tags list: invalid status code "
        "from registry 429 (Too Many Requests)",
        PASSING,
    ),
    (
        "reading digest master in docker.io/a/b: errors:\ndenied: requested access to the resource is denied\nerror "
        'parsing HTTP 401 response body: unexpected end of JSON input: ""',
        DENIED,
    ),
    (
        "writing manifest: uploading manifest 1 to x.example/a: errors:\ndigest invalid: provided digest did not match "
        "uploaded content\nmanifest blob unknown: blob unknown to registry",
        PASSING,
    ),
    ("writing manifest: uploading manifest 1 to x.example/a: provided digest did not match uploaded content", PASSING),
    ("writing manifest: uploading manifest 1 to x.example/a: blob unknown to registry", PASSING),
    ("copying system image: reading blob sha256:12: fetching blob: blob unknown to registry", REFUSED),
    ('writing blob: Patch "https://x.example/v2/a/blobs/uploads/1": use of closed network connection', PASSING),
    (
        'pinging container registry x.example: Get "https://x.example/v2/": dial tcp: lookup x.example: no such host',
        REFUSED,
    ),
    ('pinging container registry x.example: Get "https://x.example/v2/": EOF', PASSING),
    (
        "trying to reuse blob sha256:3dc6 at destination: failed to read from destination repository error-404/pages: "
        "500 (Internal Server Error)",
        PASSING,
    ),
    (
        "trying to reuse blob sha256:3dc6 at destination: failed to read from destination repository error-500/pages: "
        "400 (Bad Request)",
        REFUSED,
    ),
    ("reading manifest 1 in x.example/error-500/pages: denied: access forbidden", DENIED),
    ("reading manifest 1 in x.example/error-500/pages: StatusCode: 418, tea", REFUSED),
    ("reading manifest 1 in x.example/defaultbackend-404: denied: no 404 for you", DENIED),
    ("reading manifest 1 in x.example/defaultbackend-404: unsupported: The operation is unsupported.", REFUSED),
    ("reading manifest unknown in x.example/manifest: denied: manifest unknown", DENIED),
    ("reading manifest toomanyrequests in x.example/unavailable: manifest invalid: i/o timeout", REFUSED),
    ('reading manifest i/o in x.example/timeout: StatusCode: 400, "status: 503"', REFUSED),
    ("reading manifest EOF in x.example/timed-out: unsupported", REFUSED),
)
