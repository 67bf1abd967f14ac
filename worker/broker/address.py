"""The address of a farm, in the forms for redis-py and Celery, and masked for display."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from layerfarm.jobs.errors import RequestError

_SOCKET_SCHEMES: Final = ("unix", "redis+socket")
_TCP_SCHEMES: Final = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
"""Schemes of a server reached by TCP, as redis-py and kombu know them; the last two use TLS."""
_SENTINEL_SCHEMES: Final = ("sentinel", "sentinels")
"""Schemes of sentinels, which know the primary; the second uses TLS for them and for the primary."""
_SEVERAL: Final = re.compile(r"(sentinels?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
"""Scheme, authority and the rest of an address that may list several hosts."""
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_HINT: Final = (
    "write redis://HOST[:PORT][/DB], rediss://…, valkey://…, valkeys://…, unix:///PATH"
    " or sentinel://HOST[:PORT][,HOST[:PORT]…]/NAME[/DB]"
)


@dataclass(frozen=True)
class Address:
    """``redis://`` or ``valkey://``, ``rediss://`` or ``valkeys://`` (TLS), ``unix:///path/to/socket`` (also
    ``redis+socket://``), or ``sentinel://HOST,HOST,…/NAME/DB`` (``sentinels://`` by TLS).

    Raises:
        RequestError: the address has none of these forms.
    """

    url: str

    def __post_init__(self) -> None:
        try:
            parts = self._parts
        except ValueError as error:
            # The parser's own message may quote the password.
            raise RequestError("address of the farm is malformed", hint=_HINT) from error
        if parts.scheme in _SOCKET_SCHEMES:
            if not parts.path.startswith("/"):
                raise RequestError("address of the farm has no socket path", where=self.masked, hint=_HINT)
        elif parts.scheme in _SENTINEL_SCHEMES:
            database = self._parts.path.strip("/").partition("/")[2]
            if not self.service or not all(host for host, _ in self.hosts) or not (database or "0").isdecimal():
                raise RequestError("malformed address of a farm behind sentinels", where=self.masked, hint=_HINT)
        elif parts.scheme not in _TCP_SCHEMES or not self.hosts[0][0]:
            raise RequestError("malformed address of a farm", where=self.masked, hint=_HINT)

    @property
    def for_redis(self) -> str:
        """Return the address with a scheme that redis-py knows; not for sentinels."""
        assert not self.is_sentinel
        return self._with_scheme("unix" if self.is_socket else _TCP_SCHEMES[self._parts.scheme])

    @property
    def for_celery(self) -> str:
        """Return it with a scheme that kombu knows, a URL for each sentinel (``layerfarm.worker.broker.app``)."""
        if self.is_sentinel:
            login = self._parts.netloc.rpartition("@")[0]
            at = f"{login}@" if login else ""
            return ";".join(f"sentinel://{at}{_bracketed(host)}:{port}/{self.database}" for host, port in self.hosts)
        return self._with_scheme("redis+socket" if self.is_socket else _TCP_SCHEMES[self._parts.scheme])

    @property
    def is_socket(self) -> bool:
        return self._parts.scheme in _SOCKET_SCHEMES

    @property
    def is_sentinel(self) -> bool:
        return self._parts.scheme in _SENTINEL_SCHEMES

    @property
    def is_tls(self) -> bool:
        return self._parts.scheme == "sentinels" or _TCP_SCHEMES.get(self._parts.scheme) == "rediss"

    @cached_property
    def hosts(self) -> list[tuple[str, int]]:
        """Return host and port of the server, or of each sentinel; none for a socket.

        Raises:
            RequestError: a port is not a number.
        """
        if self.is_socket:
            return []
        listed = self._parts.netloc.rpartition("@")[2].split(",")
        default = _SENTINEL_PORT if self.is_sentinel else _PORT
        try:
            split = [urlsplit(f"//{each}") for each in (listed if self.is_sentinel else [",".join(listed)])]
            return [(each.hostname or "", each.port or default) for each in split]
        except ValueError as error:
            raise RequestError("address of the farm is malformed", hint=_HINT) from error

    @property
    def service(self) -> str:
        """Return the name under which the sentinels know the primary."""
        return unquote(self._parts.path.strip("/").partition("/")[0]) if self.is_sentinel else ""

    @property
    def database(self) -> int:
        """Return the number of the database behind the sentinels."""
        return int(self._parts.path.strip("/").partition("/")[2] or 0)

    @cached_property
    def query(self) -> dict[str, str]:
        """Return the options, such as ``ssl_ca_certs``."""
        return dict(parse_qsl(self._parts.query))

    @property
    def login(self) -> dict[str, str]:
        """Return user and password for the server behind the sentinels, as redis-py names them."""
        user, _, password = self._parts.netloc.rpartition("@")[0].partition(":")
        return {name: unquote(text) for name, text in (("username", user), ("password", password)) if text}

    @property
    def tls(self) -> dict[str, Any]:
        """Return the TLS options in the address, as redis-py names them; none without TLS."""
        named = {name: text for name, text in self.query.items() if name.startswith("ssl_")}
        return {"ssl": True} | named if self.is_tls else {}

    @property
    def sentinel_login(self) -> dict[str, str]:
        """Return user and password for the sentinels: ``sentinel_username`` and ``sentinel_password``."""
        known = {name: self.query.get(f"sentinel_{name}") for name in ("username", "password")}
        return {name: text for name, text in known.items() if text}

    @property
    def masked(self) -> str:
        """Return the address without any password, for messages and logs."""
        try:
            parts = self._parts
            netloc = parts.netloc
            query = [(k, "***" if "password" in k.lower() else v) for k, v in parse_qsl(parts.query)]
        except ValueError:
            return "***"
        if "@" in netloc:
            login, _, host = netloc.rpartition("@")
            user, colon, _ = login.partition(":")
            netloc = f"{user}{colon and ':***'}@{host}"
        end = f"?{urlencode(query, safe='*/')}" if query else ""
        return f"{parts.scheme}://{netloc}{parts.path}{end}"

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"Address({self.masked!r})"

    @cached_property
    def _parts(self) -> SplitResult:
        several = _SEVERAL.match(self.url)
        if several is None:
            return urlsplit(self.url)
        # Newer Pythons refuse an authority with a bracket that is not the first or last character of the host.
        scheme, authority, rest = several.groups()
        return urlsplit(f"{scheme}://{rest}")._replace(netloc=authority)

    def _with_scheme(self, scheme: str) -> str:
        return scheme + "://" + self.url.partition("://")[2]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host)
