"""Settings and the farm's address: what is refused, and that no password is ever shown."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import pytest

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.address import Address
from layerfarm.worker.settings import _KEYS, load_settings


def test_lists_come_from_the_environment_separated_as_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_ROOTS", "/a:/b")
    monkeypatch.setenv("LAYERFARM_STORES", "/s")
    monkeypatch.setenv("LAYERFARM_FLOWS", "one:two")
    settings = load_settings()
    assert (settings.roots, settings.stores, settings.flows) == (
        (Path("/a"), Path("/b")),
        (Path("/s"),),
        ("one", "two"),
    )


def test_every_variable_in_deploy_is_a_setting() -> None:
    """Anything else would make each command fail where deploy/.env is exported."""
    deploy = Path(__file__).resolve().parents[3] / "deploy"
    texts = [path.read_text() for path in deploy.rglob("*") if path.suffix in (".yaml", ".env", ".example", ".service")]
    names = {name for text in texts for name in re.findall(r"\bLAYERFARM_[A-Z_]+\b", text)}
    assert len(names) > 10
    assert names - {f"LAYERFARM_{key.upper()}" for key in _KEYS.values()} == set()


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_CONCURRENCY", "7")
    assert load_settings().concurrency == 7
    assert load_settings(concurrency=3).concurrency == 3
    assert load_settings(concurrency=None).concurrency == 7


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STORES", "", "'stores' is wrong: empty path"),
        ("STORES", "/a::/b", "'stores' is wrong: empty path"),
        ("ROOTS", "relative", "'roots' is wrong: path must be absolute: relative"),
        ("CONCURRENCY", "0", "'concurrency' is wrong"),
        ("LEASE", "soon", "'lease' is wrong"),
        ("QUEUE", "a b", "'queue' is wrong"),
    ],
)
def test_wrong_setting_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"LAYERFARM_{name}", value)
    with pytest.raises(RequestError, match=message) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_worker_policy_allows_nothing_unsaid() -> None:
    policy = load_settings(concurrency=3).policy
    assert (policy.roots, policy.stores, policy.shards) == ((), (), 3)


def test_password_is_not_shown_by_settings() -> None:
    assert "hunter2" not in repr(load_settings(farm="redis://:hunter2@host"))


def test_missing_farm_is_reported() -> None:
    for farm in (None, ""):
        with pytest.raises(RequestError, match="no farm is configured"):
            _ = load_settings(farm=farm).address


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("redis://user:se%40cret@host:1/2", "redis://user:***@host:1/2"),
        ("rediss://user:a@b@host", "rediss://user:***@host"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1&password=***"),
        ("rediss://host?ssl_keyfile_password=secret", "rediss://host?ssl_keyfile_password=***"),
    ],
)
def test_address_is_shown_without_its_password(url: str, masked: str) -> None:
    address = Address(url)
    assert address.masked == str(address) == masked
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        *("", "host:6379", "http://u:secret@host", "redis://", "redis://h:secret", "unix://", "unix://x"),
        *("sentinel://h", "sentinel://h:secret/n", "sentinel:///n", "sentinel://h,/n", "sentinel://h/n/db"),
    ],
)
def test_text_that_is_no_address_is_refused_without_a_password(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        Address(url)
    assert "secret" not in str(caught.value)


def only_brackets_around_the_host(url: str) -> SplitResult:
    """urlsplit of Python 3.13.2, 3.12.9 and 3.11.12; Debian has it in its 3.11.2."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if "[" in host and re.fullmatch(r"\[[^]]*\](:\d*)?", host) is None:
        raise ValueError("Invalid IPv6 URL")
    return parts


def test_sentinels_have_a_url_each_for_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfarm.worker.broker.address.urlsplit", only_brackets_around_the_host)
    address = Address("sentinel://user:p%40ss@one,two:7,[::1]:8/my%20farm/3?sentinel_password=secret")
    assert address.is_sentinel and not address.is_socket and not address.is_tls
    assert address.hosts == [("one", 26379), ("two", 7), ("::1", 8)]
    assert (address.service, address.database) == ("my farm", 3)
    assert address.login == {"username": "user", "password": "p@ss"}
    assert address.sentinel_login == {"password": "secret"}
    assert address.for_celery.split(";") == [
        f"sentinel://user:p%40ss@{host}/3" for host in ("one:26379", "two:7", "[::1]:8")
    ]
    assert address.masked == "sentinel://user:***@one,two:7,[::1]:8/my%20farm/3?sentinel_password=***"
    assert Address("sentinel://h/name").database == 0
    through_tls = Address("sentinels://h/name?ssl_ca_certs=/ca.crt&other=1")
    assert through_tls.is_tls and through_tls.tls == {"ssl": True, "ssl_ca_certs": "/ca.crt"}


def test_socket_has_the_scheme_that_each_library_wants() -> None:
    for url in ("unix:///run/a.sock", "redis+socket:///run/a.sock"):
        assert Address(url).for_redis == "unix:///run/a.sock"
        assert Address(url).for_celery == "redis+socket:///run/a.sock"
    for ours, theirs in (("valkey://h/1", "redis://h/1"), ("valkeys://u:p@h:1/2?x=y", "rediss://u:p@h:1/2?x=y")):
        assert Address(ours).for_celery == Address(ours).for_redis == theirs
        assert Address(ours).is_tls == Address(theirs).is_tls == (theirs[:6] == "rediss")
        assert not Address(ours).is_socket
    assert Address("rediss://h").for_celery == Address("rediss://h").for_redis == "rediss://h"
