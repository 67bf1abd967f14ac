"""Signatures of requests by their submitters, for farms where the password alone is insufficient.

A signature is ``1:<expiry>:<nonce>:<hmac>``: an HMAC-SHA256, by the submitter's key, of the job's id, kind, class and
format, the submitter's name, the request to the byte, the expiry (ms since the epoch by the clock of Redis) and the
nonce. Workers check it before a job begins and again for each of its units. The job store spends the nonce when the job
has begun (``open_stage``), so that a signature opens one job, once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import SecretStr

from layerfarm.jobs.errors import RequestError, Untrusted

_SHORTEST: Final = 32
"""Characters of a key: 128 bits in hexadecimal."""
_LARGEST_FILE: Final = 64 * 1024
_SIGNATURE: Final = re.compile(r"1:([0-9]{1,16}):([0-9a-f]{32}):([0-9a-f]{64})")
_SUBMITTER: Final = re.compile(r"[\w@+-][\w.@+-]{0,99}")


class Signed(NamedTuple):
    """The fields that a signature covers."""

    job_id: str
    kind: str
    traffic: str
    submitter: str
    format: int
    request: str
    """JSON, as in the record."""


def sign(key: SecretStr, signed: Signed, expires: int) -> str:
    """Return the signature of a request; ``expires``: ms since the epoch."""
    nonce = secrets.token_hex(16)
    return f"1:{expires}:{nonce}:{_hmac(key, signed, expires, nonce)}"


def _hmac(key: SecretStr, signed: Signed, expires: int, nonce: str) -> str:
    text = json.dumps([*signed, expires, nonce], ensure_ascii=True, separators=(",", ":"))
    secret = key.get_secret_value().encode()
    return hmac.new(secret, b"layerfarm request 1\n" + text.encode(), hashlib.sha256).hexdigest()


def read_keys(path: Path) -> tuple[SecretStr, ...]:
    """Return the keys in a file, one a line; the first one signs, all are accepted, so that a key can be replaced.

    Raises:
        RequestError: the file cannot be read, others can read it too, or a key is short.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise RequestError("file of a key is readable by other users", where=path, hint="chmod 600")
        lines = path.read_text()[:_LARGEST_FILE].split()
    except OSError as error:
        raise RequestError(f"file of a key cannot be read, {error.strerror}", where=path) from None
    except UnicodeDecodeError:
        raise RequestError("file of a key is not text", where=path) from None
    if not lines or any(len(line) < _SHORTEST for line in lines):
        hint = "create one with: openssl rand -hex 32"
        raise RequestError(f"a key has fewer than {_SHORTEST} characters", where=path, hint=hint)
    return tuple(map(SecretStr, lines))


class Keyring:
    """The keys of all submitters that a worker serves.

    Parameters:
        longest: ms for which a signature may be valid.
    """

    def __init__(self, keys: Mapping[str, tuple[SecretStr, ...]], longest: int) -> None:
        self._keys = keys
        self._longest = longest

    @classmethod
    def load(cls, directory: Path, longest: int) -> Keyring:
        """Read a directory with a file for each submitter, named after the submitter.

        Raises:
            RequestError: it cannot be read, holds no key, or an unusable one.
        """
        try:
            files = sorted(path for path in directory.iterdir() if _SUBMITTER.fullmatch(path.name))
        except OSError as error:
            raise RequestError(f"directory of keys cannot be read, {error.strerror}", where=directory) from None
        if not files:
            raise RequestError("directory of keys is empty, no one could submit", where=directory)
        return cls({path.name: read_keys(path) for path in files}, longest)

    def check(self, signed: Signed, signature: str) -> None:
        """Check the signature of a request.

        Raises:
            Untrusted: its submitter did not sign this request.
        """
        found = _SIGNATURE.fullmatch(signature)
        if found is None:
            hint = "this farm accepts only signed requests, see docs/operating.md#signed-requests"
            raise Untrusted("request is not signed", hint=hint)
        keys = self._keys.get(signed.submitter, ())
        if not any(hmac.compare_digest(_hmac(key, signed, int(found[1]), found[2]), found[3]) for key in keys):
            raise Untrusted("signature of the request is not valid for its submitter", where=signed.submitter)

    def check_time(self, signature: str, now: int) -> None:
        """Check the validity of a signature in time.

        Raises:
            Untrusted: it has expired, or would be valid for too long.
        """
        expires = int(signature.split(":")[1])
        if expires <= now:
            raise Untrusted("signature of the request has expired", hint="submit it again")
        if expires > now + self._longest:
            raise Untrusted("signature of the request is valid for too long", hint="see LAYERFARM_SIGNATURE_VALID")
