"""The address of a farm, in the forms that redis-py and Celery want, and in the form that may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from jobs.errors import RequestError

_SOCKET_SCHEMES = ("unix", "redis+socket")
_TCP_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
"""Schemes of a server reached by TCP, as redis-py and kombu know them; the second two are through TLS."""


@dataclass(frozen=True)
class Address:
    """``redis://`` or ``valkey://``, ``rediss://`` or ``valkeys://`` (TLS), or ``unix:///path/to/socket`` (also
    ``redis+socket://``)."""

    url: str

    def __post_init__(self) -> None:
        scheme, host, path = _split(self.url)
        hint = "write redis://HOST[:PORT][/DB], rediss://…, valkey://…, valkeys://… or unix:///PATH"
        if scheme in _SOCKET_SCHEMES:
            if not path.startswith("/"):
                raise RequestError("address of the farm names no socket", where=self.masked, hint=hint)
        elif scheme not in _TCP_SCHEMES or not host:
            raise RequestError("not the address of a farm", where=self.masked, hint=hint)

    @property
    def for_redis(self) -> str:
        """The address with a scheme that redis-py knows."""
        return self._with_scheme("unix" if self.is_socket else _TCP_SCHEMES[self._scheme])

    @property
    def for_celery(self) -> str:
        """The address with a scheme that kombu knows."""
        return self._with_scheme("redis+socket" if self.is_socket else _TCP_SCHEMES[self._scheme])

    @property
    def is_socket(self) -> bool:
        return self._scheme in _SOCKET_SCHEMES

    @property
    def is_tls(self) -> bool:
        return _TCP_SCHEMES.get(self._scheme) == "rediss"

    @property
    def masked(self) -> str:
        """For messages and logs: without any password."""
        try:
            parts = urlsplit(self.url)
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

    @property
    def _scheme(self) -> str:
        return urlsplit(self.url).scheme

    def _with_scheme(self, scheme: str) -> str:
        return scheme + "://" + self.url.partition("://")[2]


def _split(url: str) -> tuple[str, str | None, str]:
    try:
        parts = urlsplit(url)
        _ = parts.port  # ValueError when it is no number
    except ValueError as error:
        # The parser's own message may quote the password.
        raise RequestError("address of the farm does not parse") from error
    return parts.scheme, parts.hostname, parts.path
