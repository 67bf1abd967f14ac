"""Send the few requests to registries that skopeo cannot: a HEAD for a tag, the list of repositories.

If the answer is not plain (another kind of authentication, a certificate or mirror that only skopeo's configuration
knows), :class:`NoPlainAnswer` is raised.

``oras``, the client library of that name (0.2), is not used: its requests have no time limit, it retries them itself
for up to two minutes, has one token for all repositories, and does not read Podman's auth files.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import urllib3

from layerfarm.worker.catalog.answers import Answer
from layerfarm.worker.catalog.credentials import Credentials, credentials_for
from layerfarm.worker.catalog.document import DOCKER, Connection
from layerfarm.worker.catalog.pace import Pace

_HUB: Final = "docker.io"
_HUB_HOST: Final = "registry-1.docker.io"
_TIMES: Final = urllib3.Timeout(connect=10.0, read=60.0)
_RETRIES: Final = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=4, raise_on_redirect=False)
_PARAMETER: Final = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
_LONGEST_BODY: Final = 4 << 20


class NoPlainAnswer(Exception):
    """The registry's answer is not understood here; skopeo may understand it."""


@dataclass(frozen=True)
class Reference:
    """``docker://HOST/REPOSITORY:TAG`` or ``…@DIGEST`` in parts."""

    host: str
    repository: str
    name: str
    """The tag or digest."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse as Docker does: the default host is Docker Hub, the default namespace ``library``."""
        rest = text.removeprefix(DOCKER)
        rest, at, digest = rest.partition("@")
        path, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            path, tag = rest, "latest"
        host, slash, repository = path.partition("/")
        if not slash or not (host == "localhost" or "." in host or ":" in host):
            host, repository = _HUB, path
        if host in (_HUB, "index.docker.io"):
            host, repository = _HUB, repository if "/" in repository else f"library/{repository}"
        return cls(host, repository, digest if at else tag)


class Reply(NamedTuple):
    """The answer to a request."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def answer(self) -> Answer:
        """Return the answer by its HTTP status."""
        return Answer(f"HTTP status {self.status} {self.reason}".rstrip(), status=self.status)


@dataclass
class HttpClient:
    """Sends requests. Used by many threads at once."""

    connection: Connection
    pace: Pace
    """Called before each request, and for each one sent."""
    parallel: int = 4
    """Requests at once."""
    _pools: dict[tuple[str, str], urllib3.PoolManager] = field(default_factory=dict)
    _schemes: dict[str, str] = field(default_factory=dict)
    """By host, the scheme at which it answers. Empty: it does not answer; only skopeo can reach it."""
    _authorizations: dict[tuple[str, str], str] = field(default_factory=dict)
    """By host and scope."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, method: str, host: str, path: str, scope: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request for ``/v2/PATH``; authenticate if asked to, for ``scope`` (distribution's "Token Scope").

        Raises:
            NoPlainAnswer: the host cannot be reached, or wants another kind of authentication.
        """
        reply = self._once(method, host, path, headers, self._authorizations.get((host, scope)))
        if reply.status in (401, 403):
            authorization = self._authorization(host, scope, reply.headers.get("WWW-Authenticate", ""))
            self._authorizations[host, scope] = authorization
            reply = self._once(method, host, path, headers, authorization)
        return reply

    # --- inside ----------------------------------------------------------------------------------

    def _once(
        self, method: str, name: str, path: str, headers: Mapping[str, str] | None, authorization: str | None
    ) -> Reply:
        headers = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
        host = _HUB_HOST if name == _HUB else name
        known = self._schemes.get(name)
        schemes = (known,) if known is not None else ("https", *(() if self.connection.verifies else ("http",)))
        for scheme in filter(None, schemes):
            self.pace.wait()
            try:
                reply = self._request(method, scheme, f"{host}/v2/{path}", headers)
            except urllib3.exceptions.HTTPError:
                continue
            self._schemes[name] = scheme
            return reply
        if known is None:
            self._schemes[name] = ""
        raise NoPlainAnswer

    def _request(
        self, method: str, scheme: str, place: str, headers: Mapping[str, str], fields: dict[str, str] | None = None
    ) -> Reply:
        """Send one request to ``place``, a URL without scheme."""
        response = self._pool(scheme, place).request(
            method,
            f"{scheme}://{place}",
            headers=dict(headers),
            fields=fields,
            timeout=_TIMES,
            retries=_RETRIES,
            preload_content=False,
        )
        self.pace.sent([method])
        try:
            body = response.read(_LONGEST_BODY)
            if response.read(1):
                response.close()
                raise NoPlainAnswer
        finally:
            response.release_conn()
        return Reply(response.status, response.reason or "", response.headers, body)

    def _authorization(self, host: str, scope: str, challenge: str) -> str:
        """Return the header that answers a challenge (distribution's "Token Authentication")."""
        scheme, _, rest = challenge.partition(" ")
        kind, _, name = scope.partition(":")
        repository = name.rpartition(":")[0] if kind == "repository" else ""
        credentials = credentials_for(host, repository, self.connection.auth_file)
        if credentials is not None and credentials.identity_token:
            raise NoPlainAnswer
        if scheme.lower() == "basic" and credentials is not None:
            return credentials.basic
        if scheme.lower() != "bearer":
            raise NoPlainAnswer
        return self._token(scope, dict(_PARAMETER.findall(rest)), credentials)

    def _token(self, scope: str, parameters: dict[str, str], credentials: Credentials | None) -> str:
        realm = parameters.get("realm", "")
        scheme, _, place = realm.partition("://")
        # A password is sent unencrypted only to the registry itself, if configured so.
        if scheme != "https" and (scheme != "http" or self.connection.verifies):
            raise NoPlainAnswer
        fields = {"scope": parameters.get("scope") or scope}
        fields |= {"service": parameters["service"]} if "service" in parameters else {}
        headers = {"Authorization": credentials.basic} if credentials else {}
        self.pace.wait()
        try:
            reply = self._request("GET", scheme, place, headers, fields)
            content = json.loads(reply.body)
            token = content.get("token") or content.get("access_token")
        except (urllib3.exceptions.HTTPError, ValueError, AttributeError, RecursionError) as error:
            raise NoPlainAnswer from error
        if reply.status != 200 or not isinstance(token, str) or not token.isprintable():
            raise NoPlainAnswer
        return f"Bearer {token}"

    def _pool(self, scheme: str, place: str) -> urllib3.PoolManager:
        """Return connections to the host at which ``place``, a URL without scheme, begins."""
        key = (scheme, place.partition("/")[0])
        with self._lock:
            if key not in self._pools:
                self._pools[key] = _pool(*key, self.connection, self.parallel)
            return self._pools[key]


def _pool(scheme: str, host: str, connection: Connection, size: int) -> urllib3.PoolManager:
    """Return a pool with the certificates of the connection, or those that containers-certs.d(5) has for the host.

    Requests go through the proxy of the environment.
    """
    context = ssl.create_default_context()
    if not connection.verifies:
        # The catalog file requests it; urllib3 would warn at each request.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    own = connection.cert_dir
    for directory in [Path(own)] if own is not None else [place / host for place in certificate_directories()]:
        try:
            for path in sorted(directory.glob("*.crt")):
                context.load_verify_locations(path)
            for path in sorted(directory.glob("*.cert")):
                context.load_cert_chain(path, path.with_suffix(".key"))
        except OSError:
            continue  # skopeo reports it
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    if proxy is not None:
        return urllib3.ProxyManager(proxy, ssl_context=context, maxsize=size)
    return urllib3.PoolManager(ssl_context=context, maxsize=size)


def certificate_directories() -> list[Path]:
    """Return the directories in which containers-certs.d(5) looks for the certificates of a host."""
    home = Path(os.environ.get("HOME", "/"))
    return [home / ".config/containers/certs.d", Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d")]
