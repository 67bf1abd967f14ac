"""The secrets of notifications: a token in a header, or GitHub's HMAC over the body. Compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.catalog.serve.notifications import KINDS

SIGNED: Final = "github"
"""The kind whose notifications are signed; the others have a token."""
SHORTEST: Final = 16
"""Minimum number of characters of a secret."""
_LARGEST: Final = 65536


def read_secrets(directory: Path) -> dict[str, tuple[bytes, ...]]:
    """Return the secrets of each kind of registry that has a file in ``directory``, named like the kind.

    Each line is a secret; with two of them the old one stays valid while it is replaced.

    Raises:
        RequestError: a file cannot be read, has no secret, or one that is too short; or there is no file.
    """
    found = {}
    for kind in KINDS:
        path = directory / kind
        try:
            with path.open("rb") as stream:
                lines = stream.read(_LARGEST).splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RequestError(f"secret cannot be read, {error.strerror}", where=path) from error
        secrets = tuple(line.strip() for line in lines if line.strip())
        if not secrets or min(map(len, secrets)) < SHORTEST:
            raise RequestError(f"secret is shorter than {SHORTEST} characters", where=path, hint="openssl rand -hex 32")
        found[kind] = secrets
    if not found:
        names = ", ".join(KINDS)
        raise RequestError("no secrets", where=directory, hint=f"a file for each kind of registry: {names}")
    return found


def has_token(kind: str, secrets: tuple[bytes, ...], headers: Mapping[str, str], query: str) -> bool:
    """Return True if the request has one of the secrets as its token.

    ``headers``: by names in lower case; ``query``: the parameter ``token`` of the URL, for Quay, which sends no header.
    """
    given = [*_tokens(headers.get("authorization", "")), *([_bytes(query)] if kind == "quay" and query else [])]
    # No early end: the time is the same for each secret.
    return bool(sum(hmac.compare_digest(one, secret) for one in given for secret in secrets))


def is_signed(secrets: tuple[bytes, ...], headers: Mapping[str, str], body: bytes) -> bool:
    """Return True if ``X-Hub-Signature-256`` is the HMAC of the body with one of the secrets."""
    algorithm, _, given = headers.get("x-hub-signature-256", "").partition("=")
    right = (hmac.new(secret, body, hashlib.sha256).hexdigest() for secret in secrets)
    return bool(sum(hmac.compare_digest(one.encode(), _bytes(given)) for one in right)) and algorithm == "sha256"


def _tokens(authorization: str) -> list[bytes]:
    """Return the token of ``Bearer TOKEN``, ``Basic base64(USER:TOKEN)`` or ``TOKEN``: Harbor sends any text."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            _, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return []
        return [password]
    return [_bytes(rest if scheme.lower() == "bearer" else authorization)]


def _bytes(text: str) -> bytes:
    """Return the bytes of a header, which the server decoded as latin-1."""
    return text.strip().encode("latin-1", "replace")
