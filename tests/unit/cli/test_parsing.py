"""The spellings that umoci's users are used to."""

from __future__ import annotations

import click
import pytest

from layerfarm.worker.cli.main import cli
from layerfarm.worker.cli.parsing import GoStyleCommand


def parse(*args: str) -> dict[str, object]:
    """Values of ``args`` for a command with each kind of option."""
    seen: dict[str, object] = {}

    @click.command(cls=GoStyleCommand)
    @click.option("--image")
    @click.option("--config.env", "env", multiple=True)
    @click.option("--rootless", is_flag=True)
    @click.option("-f", "short")
    @click.argument("words", nargs=-1)
    def command(**values: object) -> None:
        seen.update(values)

    command.main(list(args), standalone_mode=False)
    return seen


@pytest.mark.parametrize(
    "args",
    [
        ("--image", "a:b", "bundle"),
        ("--image=a:b", "bundle"),
        ("bundle", "--image", "a:b"),
        ("bundle", "--image=a:b"),
        ("-image", "a:b", "bundle"),
        ("-image=a:b", "bundle"),
        ("--image", "x", "--image", "a:b", "bundle"),
        ("--image=a:b", "--", "bundle"),
    ],
)
def test_an_option_is_read_in_every_spelling_and_place(args: tuple[str, ...]) -> None:
    seen = parse(*args)
    assert (seen["image"], seen["words"]) == ("a:b", ("bundle",))


def test_a_repeated_option_keeps_its_order_and_is_not_split_at_commas() -> None:
    assert parse("--config.env=A=1,B=2", "--config.env", "C=3", "-config.env=D==")["env"] == ("A=1,B=2", "C=3", "D==")


@pytest.mark.parametrize("value", ["--rootless", "-image", "--", "-", "", "--image=x", "-f"])
def test_the_value_of_an_option_is_never_taken_for_an_option(value: str) -> None:
    for args in (("--config.env", value), (f"--config.env={value}",), ("-config.env", value)):
        assert parse(*args) | {"env": (value,)} == parse() | {"env": (value,)}


@pytest.mark.parametrize("spelling", ["--rootless", "-rootless", "--rootless=true", "--rootless=T", "-rootless=1"])
def test_a_switch_is_turned_on_in_every_spelling(spelling: str) -> None:
    assert parse(spelling)["rootless"] is True


@pytest.mark.parametrize("spelling", ["--rootless=false", "--rootless=0", "-rootless=F"])
def test_a_switch_is_turned_off_by_false(spelling: str) -> None:
    assert parse(spelling)["rootless"] is False


def test_a_switch_that_is_neither_true_nor_false_is_a_usage_error() -> None:
    with pytest.raises(click.UsageError, match="'maybe' is neither true nor false"):
        parse("--rootless=maybe")


def test_arguments_after_two_dashes_are_left_alone() -> None:
    assert parse("--", "-image", "--rootless=true")["words"] == ("-image", "--rootless=true")


def test_a_global_option_does_not_reach_into_the_subcommand() -> None:
    with cli.make_context("layerfarm", ["-log=info", "jobs", "-log=x"]) as ctx:
        assert ctx.params["level"] == "info"
        assert ctx._protected_args + ctx.args == ["jobs", "-log=x"]
