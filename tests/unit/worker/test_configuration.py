"""The settings file: which one is read, what wins over it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.limits import limits
from layerfarm.worker.configuration import apply_limits, settings_file
from layerfarm.worker.settings import limit_origins, load_settings, origins
from tests.ordinary_user import ordinary_user

EXAMPLE = Path(__file__).parents[3] / "deploy/config/layerfarm.toml"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file that this process reads."""
    path = tmp_path / "layerfarm.toml"
    monkeypatch.setenv("LAYERFARM_CONFIG", str(path))
    return path


def test_file_sets_what_the_environment_and_options_do_not(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('concurrency = 3\nlease = 7\nclass = "bulk"\nroots = ["/a", "/b:c"]\n')
    monkeypatch.setenv("LAYERFARM_LEASE", "8")
    settings = load_settings(concurrency=5)
    assert (settings.concurrency, settings.lease, settings.traffic) == (5, 8, "bulk")
    assert settings.roots == (Path("/a"), Path("/b:c"))


def test_the_named_file_then_the_users_then_the_machines(tmp_path: Path) -> None:
    home = tmp_path / "home"
    users, other = home / ".config/layerfarm/layerfarm.toml", tmp_path / "xdg/layerfarm/layerfarm.toml"
    for path in (users, other):
        path.parent.mkdir(parents=True)
        path.write_text(f'submitter = "{path.parent.parent.name}"')
    environment = {"HOME": str(home)}
    found = settings_file(environment)
    assert found is not None and found.path == users
    found = settings_file(environment | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")})
    assert found is not None and found.path == other
    named = tmp_path / "named.toml"
    named.write_text("lease = 1")
    found = settings_file(environment | {"LAYERFARM_CONFIG": str(named)})
    assert found is not None and found.values == {"lease": 1}


def test_no_file_is_no_error_unless_it_was_named(tmp_path: Path) -> None:
    assert settings_file({"HOME": str(tmp_path)}) is None
    with pytest.raises(RequestError, match="settings file cannot be read, No such file or directory"):
        settings_file({"LAYERFARM_CONFIG": str(tmp_path / "none")})


def test_a_file_that_this_user_may_not_read_is_anothers(as_root: None, tmp_path: Path) -> None:
    users = tmp_path / ".config/layerfarm/layerfarm.toml"
    users.parent.mkdir(parents=True)
    users.write_text("lease = 1")
    users.parent.chmod(0o700)
    with ordinary_user() as user:
        assert user.call(lambda: settings_file({"HOME": str(tmp_path)})) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lease = ]", r"settings file is not TOML: Invalid value \(at line 1, column 9\)"),
        ("leese = 3", r"unknown setting 'leese': .*layerfarm.toml \(did you mean lease\?\)"),
        ("[worker]\nlease = 3", r"unknown setting 'worker'"),
        ('lease = "soon"', r"setting 'lease' is wrong: .*layerfarm.toml"),
        ('class = "fast"', r"setting 'class' is wrong: .*layerfarm.toml"),
        ('roots = ["relative"]', r"setting 'roots' is wrong: path must be absolute: relative: .*layerfarm.toml"),
        ("limits = 3", r"limits is not a table"),
    ],
)
def test_an_invalid_setting_in_the_file_is_one_line_that_names_it(config: Path, text: str, message: str) -> None:
    config.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def test_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_STORE", "/srv")
    with pytest.raises(RequestError, match=r"unknown setting 'LAYERFARM_STORE' \(did you mean LAYERFARM_STORES\?\)"):
        load_settings()


def test_hint_for_an_unknown_variable_ignores_the_prefix_that_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_COLOUR", "1")
    with pytest.raises(RequestError, match=r"unknown setting 'LAYERFARM_COLOUR' \(`layerfarm config show` lists them"):
        load_settings()


def test_limits_of_the_file_hold_unless_set_already(config: Path) -> None:
    config.write_text('[limits]\nentries = "2K"\nratio = 9\n')
    environment = {"LAYERFARM_LIMIT_RATIO": "5"}
    file = settings_file()
    assert file is not None
    assert apply_limits(file, environment) == {"entries"}
    assert environment == {"LAYERFARM_LIMIT_RATIO": "5", "LAYERFARM_LIMIT_ENTRIES": "2K"}


@pytest.mark.parametrize(("text", "message"), [("entrys = 3", "unknown limit"), ('ratio = "x"', "not a number")])
def test_wrong_limit_of_the_file_names_the_file(config: Path, text: str, message: str) -> None:
    config.write_text(f"[limits]\n{text}\n")
    file = settings_file()
    assert file is not None
    with pytest.raises(RequestError, match=f"{message}.*layerfarm.toml"):
        apply_limits(file, {})


def test_every_value_tells_where_it_came_from(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('farm = "redis://:hunter2@host"\nlease = 7\nretry_for = 1\n')
    monkeypatch.setenv("LAYERFARM_RETRY_FOR", "2")
    monkeypatch.setenv("LAYERFARM_LIMIT_RATIO", "6")
    found = {row.name: (row.value, row.source) for row in origins() + limit_origins(frozenset({"entries"}))}
    assert found["farm"] == ("redis://:***@host", str(config))
    assert found["lease"] == ("7.0", str(config))
    assert found["retry_for"] == ("2.0", "LAYERFARM_RETRY_FOR")
    assert found["drain"] == ("60.0", "default")
    assert found["limits.ratio"] == ("6", "LAYERFARM_LIMIT_RATIO")
    assert found["limits.entries"] == (str(limits().entries), str(config))
    assert found["limits.pax_bytes"] == (str(limits().pax_bytes), "default")


def test_the_example_is_valid_as_it_is_and_with_every_line_switched_on(config: Path) -> None:
    text = EXAMPLE.read_text()
    config.write_text(text)
    assert load_settings().farm is None
    config.write_text("\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines()))
    settings = load_settings()
    assert settings.roots == (Path("/srv/rootfs"),)
    file = settings_file()
    assert file is not None and apply_limits(file, {}) == {"entries", "stream_bytes"}
