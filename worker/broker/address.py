"""The address of a farm, in the forms that redis-py and Celery want, and in the form that may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from layerfarm.jobs.errors import RequestError

_SOCKET_SCHEMES: Final = ("unix", "redis+socket")
_TCP_SCHEMES: Final = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
"""Schemes of a server reached by TCP, as redis-py and kombu know them; the second two are through TLS."""
_SENTINEL_SCHEMES: Final = ("sentinel", "sentinels")
"""Schemes of several sentinels, which know the primary; the second is through TLS, to them and to it."""
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
        RequestError: it is none of these.
    """

    url: str

    def __post_init__(self) -> None:
        try:
            parts = self._parts
        except ValueError as error:
            # The parser's own message may quote the password.
            raise RequestError("address of the farm does not parse") from error
        if parts.scheme in _SOCKET_SCHEMES:
            if not parts.path.startswith("/"):
                raise RequestError("address of the farm names no socket", where=self.masked, hint=_HINT)
        elif parts.scheme in _SENTINEL_SCHEMES:
            database = self._parts.path.strip("/").partition("/")[2]
            if not self.service or not all(host for host, _ in self.hosts) or not (database or "0").isdecimal():
                raise RequestError("not the address of a farm behind sentinels", where=self.masked, hint=_HINT)
        elif parts.scheme not in _TCP_SCHEMES or not self.hosts[0][0]:
            raise RequestError("not the address of a farm", where=self.masked, hint=_HINT)

    @property
    def for_redis(self) -> str:
        """The address with a scheme that redis-py knows; one of sentinels is none."""
        assert not self.is_sentinel
        return self._with_scheme("unix" if self.is_socket else _TCP_SCHEMES[self._parts.scheme])

    @property
    def for_celery(self) -> str:
        """The address with a scheme that kombu knows; of sentinels a URL for each (``layerfarm.worker.broker.app``)."""
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
        """Host and port of the server, or of each sentinel; none at a socket.

        Raises:
            RequestError: a port is no number.
        """
        if self.is_socket:
            return []
        listed = self._parts.netloc.rpartition("@")[2].split(",")
        default = _SENTINEL_PORT if self.is_sentinel else _PORT
        try:
            split = [urlsplit(f"//{each}") for each in (listed if self.is_sentinel else [",".join(listed)])]
            return [(each.hostname or "", each.port or default) for each in split]
        except ValueError as error:
            raise RequestError("address of the farm does not parse") from error

    @property
    def service(self) -> str:
        """The name under which the sentinels know the primary."""
        return unquote(self._parts.path.strip("/").partition("/")[0]) if self.is_sentinel else ""

    @property
    def database(self) -> int:
        """Behind the sentinels: the number of the database."""
        return int(self._parts.path.strip("/").partition("/")[2] or 0)

    @cached_property
    def query(self) -> dict[str, str]:
        """The options, ``ssl_ca_certs`` for one."""
        return dict(parse_qsl(self._parts.query))

    @property
    def login(self) -> dict[str, str]:
        """User and password for the server behind the sentinels, as redis-py names them."""
        user, _, password = self._parts.netloc.rpartition("@")[0].partition(":")
        return {name: unquote(text) for name, text in (("username", user), ("password", password)) if text}

    @property
    def tls(self) -> dict[str, Any]:
        """The options of TLS that the address names, as redis-py has them; none without TLS."""
        named = {name: text for name, text in self.query.items() if name.startswith("ssl_")}
        return {"ssl": True} | named if self.is_tls else {}

    @property
    def sentinel_login(self) -> dict[str, str]:
        """User and password for the sentinels themselves: ``sentinel_username`` and ``sentinel_password``."""
        known = {name: self.query.get(f"sentinel_{name}") for name in ("username", "password")}
        return {name: text for name, text in known.items() if text}

    @property
    def masked(self) -> str:
        """For messages and logs: without any password."""
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
        # Newer Pythons refuse an authority in which a bracket is not the first or last character of the host.
        scheme, authority, rest = several.groups()
        return urlsplit(f"{scheme}://{rest}")._replace(netloc=authority)

    def _with_scheme(self, scheme: str) -> str:
        return scheme + "://" + self.url.partition("://")[2]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host)
