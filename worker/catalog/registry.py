"""Registries, through skopeo: its transports, auth files and TLS.

A transfer that fails for a transient reason (the registry is unreachable, throttles, drops the connection) is retried
after a growing, random time; any other failure is raised at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from layerfarm.jobs.errors import DigestMismatch, RegistryBusy, RegistryError
from layerfarm.worker.catalog.answers import answer_in, error_of
from layerfarm.worker.catalog.document import Access, Connection
from layerfarm.worker.catalog.head import digest as head_digest
from layerfarm.worker.catalog.http_client import HttpClient, NoPlainAnswer
from layerfarm.worker.catalog.pace import Pace, requests_in
from layerfarm.worker.catalog.repositories import repositories_at

_LONGEST_WAIT: Final = 60.0
_ANSWER: Final = 120.0
"""Seconds within which a registry must answer a query; transfers have no limit."""
ResultT = TypeVar("ResultT")
_ESCAPES: Final = {"n": "\n", "t": "\t"}
"""Escapes of Go's quoted strings that stand for another character."""


class ImageReader(Protocol):
    """Reads manifests and configurations of registries."""

    def raw_manifest(self, reference: str) -> bytes:
        """Do as :meth:`Skopeo.raw_manifest`."""

    def raw_config(self, reference: str, digest: str) -> bytes:
        """Do as :meth:`Skopeo.raw_config`."""


@dataclass
class Skopeo:
    """skopeo with the options of a catalog's ``access`` section."""

    access: Access
    on_retry: Callable[[str], None] = lambda text: None
    """Called with a message on every failure that is retried."""
    first_wait: float = 1.0
    """Seconds to wait after the first failure, randomized; doubled each time, up to a minute."""
    connection_of: Callable[[str], Connection] | None = None
    """Returns the credentials and certificates for ``docker://HOST/…``; None: those of ``access``."""
    pace: Pace = field(init=False)
    _clients: dict[Connection, HttpClient] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.pace = Pace(self.access.per_minute)

    def connected(self, connection_of: Callable[[str], Connection]) -> Skopeo:
        """Return one with other credentials and certificates, and the same pace."""
        other = replace(self, connection_of=connection_of)
        other.pace = self.pace
        return other

    def tags(self, repository: str) -> list[str]:
        """Return the tags of ``docker://HOST/REPOSITORY``.

        Raises:
            NotInRegistry: the repository does not exist.
            AccessDenied: access is denied, or the repository does not exist.
            RegistryError: the registry refuses for another reason.
            RegistryBusy: the registry does not answer.
        """
        listed = json.loads(self._ask(["list-tags", *self._flags("", repository), repository], repository))
        return sorted(str(tag) for tag in listed.get("Tags") or [])

    def repositories(self, registry: str) -> list[str]:
        """Return the repositories below ``docker://HOST[:PORT][/PREFIX]``, without the prefix, sorted.

        Raises:
            RegistryError: the registry does not list them.
            RegistryBusy: the registry does not answer.
        """
        return self._patiently(lambda: repositories_at(self._client(registry), registry))

    def head(self, reference: str) -> str | None:
        """Return the digest of the manifest or index that ``docker://HOST/REPOSITORY:TAG`` names, by a HEAD request.

        None: the registry gives no plain answer; use :meth:`raw_manifest`.

        Raises:
            NotInRegistry: it does not exist.
            RegistryBusy: the registry does not answer.
        """
        try:
            return self._patiently(lambda: head_digest(self._client(reference), reference))
        except NoPlainAnswer:
            return None

    def digest(self, reference: str) -> str:
        """Return the digest by :meth:`head`, or if that fails by :meth:`raw_manifest`. Raises as :meth:`tags`."""
        return self.head(reference) or digest_of(self.raw_manifest(reference))

    def raw_manifest(self, reference: str) -> bytes:
        """Return the manifest or index that ``docker://HOST/REPOSITORY:TAG``, or ``…@DIGEST``, names, byte for byte.

        Raises:
            DigestMismatch: the registry serves other bytes for the digest.
            LayerfarmError: as :meth:`tags`.
        """
        raw = self._ask(["inspect", "--raw", *self._flags("", reference), reference], reference)
        _, at, digest = reference.partition("@")
        if at and digest != digest_of(raw) and digest.startswith("sha256:"):
            raise DigestMismatch("registry returned other bytes for this digest", where=reference)
        return raw

    def raw_config(self, reference: str, digest: str) -> bytes:
        """Return the configuration of the image ``docker://HOST/REPOSITORY@DIGEST``; ``digest``: that of the result.

        Raises as :meth:`raw_manifest`.
        """
        raw = self._ask(["inspect", "--config", "--raw", *self._flags("", reference), reference], reference)
        if digest != digest_of(raw) and digest.startswith("sha256:"):
            raise DigestMismatch(f"registry returned another configuration than {digest}", where=reference)
        return raw

    def pull(self, reference: str, layout: Path, tag: str) -> None:
        """Copy an image, all its platforms, into a private layout. Raises as :meth:`tags`.

        Docker's formats are converted to OCI's; layers stay as they are. Blobs that the layout holds are not fetched.
        """
        flags = ["--all", "--dest-oci-accept-uncompressed-layers", *self._flags("src-", reference)]
        self._transfer(["copy", *flags, reference, f"oci:{layout}:{tag}"], reference)

    def convert(self, layout: Path, blobs: Path, target: Path, tag: str) -> None:
        """Copy the one image of a layout, whose blobs are in ``blobs``, into a private one as :meth:`pull` does.

        Raises:
            RegistryError: skopeo cannot convert it.
        """
        flags = ["--all", "--dest-oci-accept-uncompressed-layers", "--src-shared-blob-dir", str(blobs)]
        self._transfer(["copy", *flags, f"oci:{layout}", f"oci:{target}:{tag}"], str(layout))

    def push(self, layout: Path, blobs: Path, reference: str, *, exact: bool = True) -> None:
        """Copy the one manifest or index of a layout to a registry; ``exact``: fail if that changes the digest.

        Of an index, the registry has the manifests. By its tag, skopeo would not find an image in one of Docker's
        formats. Raises as :meth:`tags`.
        """
        flags = [
            *("--multi-arch", "index-only"),
            *(["--preserve-digests"] if exact else []),
            *self._flags("dest-", reference),
            "--src-shared-blob-dir",
            str(blobs),
        ]
        self._transfer(["copy", *flags, f"oci:{layout}", reference], reference)

    def delete(self, reference: str) -> None:
        """Delete the manifest ``docker://HOST/REPOSITORY@DIGEST``, and all its tags. Raises as :meth:`tags`."""
        self._ask(["delete", *self._flags("", reference), reference], reference)

    def _connection(self, reference: str) -> Connection:
        return self.access.connection if self.connection_of is None else self.connection_of(reference)

    def _client(self, reference: str) -> HttpClient:
        connection = self._connection(reference)
        return self._clients.setdefault(connection, HttpClient(connection, self.pace, self.access.parallel))

    def _flags(self, side: str, reference: str) -> list[str]:
        connection = self._connection(reference)
        flags = [] if connection.verifies else [f"--{side}tls-verify=false"]
        if connection.auth_file is not None:
            flags += [f"--{side}authfile", connection.auth_file]
        if connection.cert_dir is not None:
            flags += [f"--{side}cert-dir", connection.cert_dir]
        return flags

    def _ask(self, arguments: Sequence[str], where: str) -> bytes:
        return self._patiently(lambda: self._run(arguments, where, _ANSWER))

    def _transfer(self, arguments: Sequence[str], where: str) -> None:
        self._patiently(lambda: self._run(arguments, where, None))

    def _run(self, arguments: Sequence[str], where: str, timeout: float | None) -> bytes:
        self.pace.wait()
        try:
            done = subprocess.run(
                ["skopeo", "--debug", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=timeout,
            )
        except FileNotFoundError as error:
            raise RegistryError("skopeo is not installed", hint="registries need it: apt install skopeo") from error
        except subprocess.TimeoutExpired as error:
            self.pace.sent(requests_in(error.stderr or b""))
            raise RegistryBusy("registry does not answer", where=where) from error
        self.pace.sent(requests_in(done.stderr))
        if done.returncode == 0:
            return done.stdout
        raise error_of(answer_in(_reason(done.stderr.decode(errors="replace"))), where)

    def _patiently(self, once: Callable[[], ResultT]) -> ResultT:
        retrying = Retrying(
            retry=retry_if_exception_type(RegistryBusy),
            stop=stop_after_attempt(self.access.attempts),
            wait=wait_random_exponential(multiplier=self.first_wait, max=_LONGEST_WAIT),
            before_sleep=self._say,
            reraise=True,
        )
        return retrying(once)

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self.on_retry(f"{error}, retrying (attempt {state.attempt_number + 1})")


def digest_of(raw: bytes) -> str:
    """Return the SHA-256 digest of a document."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _reason(stderr: str) -> str:
    """Return skopeo's last message; it logs ``time="…" level=fatal msg="…"``."""
    lines = [line for line in stderr.strip().splitlines() if line]
    if not lines:
        return "skopeo printed no message"
    found = re.search(r'msg="((?:[^"\\]|\\.)*)"', lines[-1])
    if not found:
        return lines[-1]
    return re.sub(r"\\(.)", lambda escaped: _ESCAPES.get(escaped[1], escaped[1]), found[1]).strip()
