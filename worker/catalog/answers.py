"""Classify the answers of registries: absent, access denied, passing, or refused for good.

An answer has an HTTP status and, mostly, a code of distribution-spec "Error Codes". skopeo reports it as text that ends
in ``CODE: MESSAGE``, ``MESSAGE`` (if it is the code's own), or a status. The text also holds the reference, which may
look like either (``error-500/pages``, ``defaultbackend-404``), and the registry's free message. So a code counts only
as a whole part of the text between colons, a status only after skopeo's words for it, and only the first of them:
references have no spaces, and the message comes last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from layerfarm.jobs.errors import AccessDenied, NotInRegistry, RegistryBusy, RegistryError

_MESSAGES: Final = {
    "BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UPLOAD_INVALID": "blob upload invalid",
    "BLOB_UPLOAD_UNKNOWN": "blob upload unknown to registry",
    "DENIED": "requested access to the resource is denied",
    "DIGEST_INVALID": "provided digest did not match uploaded content",
    "MANIFEST_BLOB_UNKNOWN": "blob unknown to registry",
    "MANIFEST_INVALID": "manifest invalid",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "MANIFEST_UNVERIFIED": "manifest failed signature verification",
    "NAME_INVALID": "invalid repository name",
    "NAME_UNKNOWN": "repository name not known to registry",
    "SIZE_INVALID": "provided length did not match content length",
    "TAG_INVALID": "manifest tag did not match URI",
    "TOOMANYREQUESTS": "too many requests",
    "UNAUTHORIZED": "authentication required",
    "UNAVAILABLE": "service unavailable",
    "UNKNOWN": "unknown error",
    "UNSUPPORTED": "The operation is unsupported.",
}
"""The registered codes with their own messages, which newer skopeos print without the code."""
_CODES: Final = {
    **{message.lower(): code for code, message in reversed(_MESSAGES.items())},
    **{code.lower().replace("_", " "): code for code in _MESSAGES},
    "too many requests to registry": "TOOMANYREQUESTS",  # skopeo's own, for a 429
}
_LOOKED_FOR: Final = re.compile(
    r"\bstatus(?:code| code)?(?: from registry)?:? (?P<status>[1-5]\d\d)\b"
    r"|\berror parsing HTTP (?P<unparsed>[1-5]\d\d) response body\b"
    r"|\bfailed to read from destination repository \S+: (?P<head>[1-5]\d\d) \("
    rf"|(?:^|: |[\n(])(?P<code>{'|'.join(sorted(map(re.escape, _CODES), key=len, reverse=True))})(?=: |[\n)]|\s*$)",
    re.IGNORECASE,
)

_ABSENT: Final = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN"})
_DENIED: Final = frozenset({"DENIED", "UNAUTHORIZED"})
_PASSING: Final = frozenset(
    {
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "MANIFEST_BLOB_UNKNOWN",
        "TOOMANYREQUESTS",
        "UNAVAILABLE",
    }
)
"""``MANIFEST_BLOB_UNKNOWN``: skopeo has sent all blobs, but a registry may not see one of them yet, or not while
another client sends it to the same repository, as with images that share layers (docker-registry 2.8)."""
_SENDING: Final = re.compile(r"\buploading manifest \S+ to \S+: ", re.IGNORECASE)
_FIRST_OF_TWO: Final = frozenset({"DIGEST_INVALID", "BLOB_UNKNOWN"})
"""Texts that newer skopeos print while they send a manifest: the first of the registry's two reasons, or the message
that ``BLOB_UNKNOWN`` and ``MANIFEST_BLOB_UNKNOWN`` share."""
_PASSING_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_GONE: Final = re.compile(r"\bnot found\b|\bwas deleted or has expired\b", re.IGNORECASE)
"""Messages of codes that are not registered, which skopeo prints as ``unknown``: Harbor's ``NOT_FOUND`` (``artifact
NAME not found``, containers/image#2203), Quay's ``TAG_EXPIRED`` (coreos-assembler PR 3517)."""
_FORBIDDEN: Final = re.compile(r"(?:^|: )forbidden\s*$", re.IGNORECASE)
"""The same for Harbor's ``FORBIDDEN`` (goharbor/harbor#19342)."""
_NETWORK: Final = re.compile(
    r"\bconnection (?:refused|reset)|\bbroken pipe\b|\bunexpected EOF\b|: EOF\s*$|\bi/o timeout\b|\btimed out\b"
    r"|\bhandshake timeout\b|\bcontext deadline exceeded\b|\btemporary failure in\b|\bserver misbehaving\b"
    r"|\bno route to host\b|\bnetwork is unreachable\b|\bhttp2: |\bserver closed \b"
    r"|\buse of closed network connection\b",
    re.IGNORECASE,
)
"""Go's messages when no answer came."""
_MASKED: Final = re.compile(
    r"\bManifest list must be converted to type \S+ to be written to destination, but we cannot"
)
"""skopeo's message after a registry did not take an index as it is, whatever the reason: most often it did not see one
of the manifests yet."""


# Go's HTTP client asked a registry without TLS for HTTPS.
_PLAIN: Final = re.compile(r"\bserver gave HTTP response to HTTPS client\b")
_LONGEST_TEXT: Final = 1000
"""Characters of an answer in an error. Its code may come later, after a long list of formats that skopeo has tried."""


class Kind(Enum):
    """The meaning of an answer for a client."""

    ABSENT = auto()
    """The repository or manifest does not exist."""
    DENIED = auto()
    """Access is denied. GHCR, GitLab, Docker Hub and Artifact Registry also answer so if the repository does not exist,
    to clients that could not read it."""
    PASSING = auto()
    """The same request may succeed later."""
    REFUSED = auto()
    """The same request would be refused every time."""


@dataclass(frozen=True)
class Answer:
    """The unsuccessful answer of a registry, or the failure to get one."""

    text: str
    status: int | None = None
    """HTTP status; None: unknown."""
    code: str | None = None
    """Code of distribution-spec, or the registry's own, which skopeo prints as ``UNKNOWN``; None: no code."""

    @property
    def kind(self) -> Kind:
        if self.code is None and self.status is None:
            return Kind.PASSING if _NETWORK.search(self.text) or _MASKED.search(self.text) else Kind.REFUSED
        if self.status in _PASSING_STATUSES:
            return Kind.PASSING
        own = self.code is not None and (self.code == "UNKNOWN" or self.code not in _MESSAGES)
        if self.code in _ABSENT or (own and _GONE.search(self.text)):
            return Kind.ABSENT
        if self.code in _DENIED or (own and _FORBIDDEN.search(self.text)):
            return Kind.DENIED
        if self.code in _PASSING or (self.code in _FIRST_OF_TWO and _SENDING.search(self.text)):
            return Kind.PASSING
        return {401: Kind.DENIED, 403: Kind.DENIED, 404: Kind.ABSENT}.get(self.status or 0, Kind.REFUSED)


def answer_in(text: str) -> Answer:
    """Return the answer that a message of skopeo reports."""
    unknown = False
    for found in _LOOKED_FOR.finditer(text):
        if status := found["status"] or found["unparsed"] or found["head"]:
            return Answer(text, status=int(status), code="UNKNOWN" if unknown else None)
        code = _CODES[found["code"].lower()]
        if code != "UNKNOWN":
            return Answer(text, code=code)
        # "unknown: MESSAGE", or the first of several errors.
        unknown = True
    return Answer(text, code="UNKNOWN" if unknown else None)


def error_of(answer: Answer, where: str) -> RegistryError:
    """Return the error that reports an answer to a request about ``where``."""
    text = answer.text[:_LONGEST_TEXT]
    match answer.kind:
        case Kind.PASSING:
            return RegistryBusy(f"registry is busy, {text}", where=where)
        case Kind.ABSENT:
            return NotInRegistry(f"not found in the registry, {text}", where=where)
        case Kind.DENIED:
            hint = "log in with skopeo login; some registries also answer so if the repository does not exist"
            return AccessDenied(f"registry denies access, {text}", where=where, hint=hint)
        case Kind.REFUSED:
            setting = "to use plain HTTP, set tls-verify: false under access" if _PLAIN.search(answer.text) else None
            return RegistryError(f"registry refused, {text}", where=where, hint=setting)
